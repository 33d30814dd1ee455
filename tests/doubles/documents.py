"""Documents as someone would write them by hand."""

from typing import Any

# Only the fields that docs/results.md promises, as someone would write it by hand.
BY_HAND: dict[str, Any] = {
    "schema": "llmenergy.results/1",
    "environment": {},
    "settings": {},
    "cells": [
        {
            "model": "m",
            "system": "s",
            "n_gpus": 1,
            "batch_size": 2,
            "kv_cache": False,
            "tokens_in": 8,
            "tokens_out": 10,
            "trials": [
                {
                    "index": i,
                    "warmup": i == 0,
                    "excluded": None,
                    "runtime_s": 1.0 + 0.1 * i,
                    "repetitions": 1,
                    "tokens_generated": 20,
                    "domains": [
                        {
                            "domain": "gpu:0",
                            "energy_j": 100.0 + i,
                            "bound_j": None,
                            "provenance": "measured",
                            "reason": None,
                        }
                    ],
                }
                for i in range(3)
            ],
            "stop": {
                "reason": "runtime",
                "trials": 2,
                "runtime_half_width_s": 0.1,
                "energy_half_width_rel": 0.01,
            },
            "summary": None,
        }
    ],
    "windows": [{"label": "w", "runtime_s": 1.0, "domains": []}],
}
