"""The names that plug-ins written before import from here; they live in `bench.questions.registry`."""

from bench.questions.registry import *  # noqa: F403
