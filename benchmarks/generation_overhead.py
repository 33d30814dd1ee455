"""Tokens per second through the backend over a bare loop of the same `model.generate`, per family.

Both run in one process on the same model, prompts and settings, turn about, so that what disturbs one
disturbs the other. Tokens per second are of the fastest call of each in CPU time, which other work on the
machine can only raise; the ratio is the median over the rounds' pairs, since on a busy machine the fastest
calls of two equal loops differ by percents. The harness does what a trial does: generate and verify; its
own work is also timed alone, as what a call takes beside the `model.generate` inside it.

    python benchmarks/generation_overhead.py [--rounds 25] [--tokens-in 32] [--tokens-out 32]
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from statistics import median
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
    heads = ("bare tok/s", "harness tok/s", "ratio", "own ms/call", "own share")
    print(f"{'family':14} {'KV cache':8}", *(f"{head:>{len(head)}}" for head in heads))
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
            found = compare(model, work, asked.rounds)
            cache = "on" if kv_cache else "off"
            print(
                f"{family:14} {cache:8} {found.bare_tok_s:10.0f} {found.harness_tok_s:13.0f} "
                f"{found.ratio:5.3f} {1e3 * found.own_s:11.3f} {found.own_s / found.call_s:9.2%}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """CPU time of the two loops."""

    bare_tok_s: float
    harness_tok_s: float
    ratio: float  # harness over bare, median over pairs
    own_s: float  # of one harness call, beside the generate inside it; median
    call_s: float  # one harness call; median


def compare(model: Any, work: Work, rounds: int) -> Compared:
    """Run both turn about."""
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

    generate = network.generate
    inside_s: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        started_s = time.process_time()
        output = generate(*args, **kwargs)
        inside_s.append(time.process_time() - started_s)
        return output

    def harness() -> None:
        network.generate = timed
        model.verify(request, model.generate(request))
        network.generate = generate

    times_s: dict[Any, list[float]] = {bare: [], harness: []}
    bare()
    harness()
    inside_s.clear()
    for number in range(rounds):
        for call in (bare, harness) if number % 2 else (harness, bare):
            started_s = time.process_time()
            call()
            times_s[call].append(time.process_time() - started_s)
    tokens = work.batch_size * work.tokens_out
    whole_s = times_s[harness]
    return Compared(
        bare_tok_s=tokens / min(times_s[bare]),
        harness_tok_s=tokens / min(whole_s),
        ratio=median(one / other for one, other in zip(times_s[bare], whole_s, strict=True)),
        own_s=median(whole - inside for whole, inside in zip(whole_s, inside_s, strict=True)),
        call_s=median(whole_s),
    )


if __name__ == "__main__":
    main()
