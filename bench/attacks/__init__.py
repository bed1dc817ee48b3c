"""The attacks, one file per family. An attack proposes; the harness projects and judges."""
