"""Before anything is computed: arithmetic that repeats, and float32 that is float32."""

from __future__ import annotations

import pytest
import torch

from bench.judging.execute import make_deterministic


def test_float32_is_not_rounded_on_a_gpu_and_sums_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The switches are there without a GPU too; PyTorch's default lets cuDNN round to TF32."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    cudnn = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    try:
        cudnn.allow_tf32 = True
        matmul.allow_tf32 = True
        cudnn.deterministic = False
        make_deterministic()
        assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic) == (False, False, True)
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before
