"""Tokens per second through the backend over a bare loop of the same `model.generate`, per family.

Both run in one process on the same model, prompts and settings, turn about, so that what disturbs one
disturbs the other; figures are of the fastest call of each in CPU time, which other work on the machine
can only raise. The harness does what a trial does: generate and verify.

    python benchmarks/generation_overhead.py [--rounds 25] [--tokens-in 32] [--tokens-out 32]
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pytest_llmenergy.backends import Work, open_backend

FAMILIES = ("tiny-llama", "tiny-mistral", "tiny-falcon", "tiny-mixtral")


def main() -> None:
    """Print one row a family and cache mode."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tokens-in", type=int, default=32)
    parser.add_argument("--tokens-out", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    asked = parser.parse_args()
    backend = open_backend(device="cpu", threads=1)
    print(f"{'family':14} {'KV cache':8} {'bare tok/s':>11} {'harness tok/s':>13} {'ratio':>6}")
    for family in FAMILIES:
        model = backend.load(family)
        for kv_cache in (False, True):
            work = Work(
                tokens_in=asked.tokens_in,
                tokens_out=asked.tokens_out,
                batch_size=asked.batch_size,
                kv_cache=kv_cache,
                seed=0,
            )
            bare, harness = rates(model, work, asked.rounds)
            cache = "on" if kv_cache else "off"
            print(f"{family:14} {cache:8} {bare:11.0f} {harness:13.0f} {harness / bare:6.3f}")


def rates(model: Any, work: Work, rounds: int) -> tuple[float, float]:
    """Tokens per CPU second of the bare loop and of the harness."""
    import torch
    from transformers import GenerationConfig

    request = model.prepare(work)
    network = model._network  # noqa: SLF001 - the bare loop runs the very same network
    config = GenerationConfig(
        max_new_tokens=work.tokens_out,
        min_new_tokens=work.tokens_out,
        do_sample=False,
        use_cache=work.kv_cache,
        pad_token_id=0,
    )

    def bare() -> None:
        with torch.inference_mode():
            network.generate(
                request.input_ids, attention_mask=request.attention_mask, generation_config=config
            )

    def harness() -> None:
        model.verify(request, model.generate(request))

    times_s: dict[Any, list[float]] = {bare: [], harness: []}
    bare()
    harness()
    for number in range(rounds):
        for call in (bare, harness) if number % 2 else (harness, bare):
            started_s = time.process_time()
            call()
            times_s[call].append(time.process_time() - started_s)
    tokens = work.batch_size * work.tokens_out
    return tokens / min(times_s[bare]), tokens / min(times_s[harness])


if __name__ == "__main__":
    main()
