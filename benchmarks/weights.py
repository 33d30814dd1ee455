"""Time and peak memory to materialise a model of 1.24 billion parameters, over from_config's default init.

Each way runs in a process of its own on the llama-3.2-1b architecture in bf16 on the CPU; imports and the
process's memory before are not counted. The ways take turns, and the fastest round of each counts: a busy
machine stretches wall time, and CPU time too where its cores are shared.

    python benchmarks/weights.py [--preset llama-3.2-1b] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


def peak_b() -> int:
    """Peak resident memory of this process since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def measure(way: str, preset_name: str) -> None:
    """Build the model one way and print what it took as JSON."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from pytest_llmenergy.backends import presets, weights

    preset = presets.PRESETS[preset_name]
    kind = CONFIG_MAPPING[preset.model_type]
    small = dict(preset.config) | {"num_hidden_layers": 1, "vocab_size": 64}
    AutoModelForCausalLM.from_config(kind(**small), dtype=torch.bfloat16)  # imports the architecture
    config = kind(**preset.config)
    Path("/proc/self/clear_refs").write_text("5")
    before_b, started_s, started_cpu_s = peak_b(), time.perf_counter(), time.process_time()
    if way == "default":
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    else:
        with init_empty_weights(include_buffers=False):
            network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        weights.materialise(network, seed=0, device_of=lambda _: torch.device("cpu"))
    took_s, took_cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    weights_b = sum(parameter.nbytes for parameter in network.parameters())
    print(json.dumps({"s": took_s, "cpu_s": took_cpu_s, "peak": (peak_b() - before_b) / weights_b}))


def main() -> None:
    """Print both ways and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="llama-3.2-1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=["default", "ours"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        measure(asked.way, asked.preset)
        return
    ways = {"default": "from_config", "ours": "weights.materialise"}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(asked.rounds):
        for way in ways:
            command = [sys.executable, __file__, "--preset", asked.preset, "--way", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'init':22} {'wall s':>8} {'CPU s':>8} {'peak / weights':>15}")
    for way, name in ways.items():
        s, cpu_s = (min(one[of] for one in found[way]) for of in ("s", "cpu_s"))
        print(f"{name:22} {s:8.1f} {cpu_s:8.1f} {max(one['peak'] for one in found[way]):15.2f}")
    wall, cpu = (
        min(one[of] for one in found["default"]) / min(one[of] for one in found["ours"])
        for of in ("s", "cpu_s")
    )
    print(f"{wall:.1f} x faster in wall time, {cpu:.1f} x in CPU time")


if __name__ == "__main__":
    main()
