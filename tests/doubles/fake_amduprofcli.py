"""Stands in AMDuProfCLI's place: real layout, real time, a known power.

FAKE_UPROF is a JSON object: packages and cores (lists of [CLOCK_MONOTONIC s, W] segments), and optionally
start_s, version, error, missing (record numbers that are not written), rows (false: header only), block
(rows are written when so many bytes of them have come, as real ones are, 4096 at a time; those left when the
program ends are written then), dated (false: no start time in the heading).
"""

import datetime as dt
import json
import os
import subprocess
import sys
import time
from pathlib import Path


def energy_j(segments, at_s):
    total = 0.0
    for number, (from_s, power_w) in enumerate(segments):
        until_s = segments[number + 1][0] if number + 1 < len(segments) else at_s
        # The first power held before its time as well.
        begin_s = 0.0 if number == 0 else from_s
        total += max(0.0, min(until_s, at_s) - begin_s) * power_w
    return total


def main():
    scenario = json.loads(os.environ["FAKE_UPROF"])
    arguments = sys.argv[1:]
    assert arguments.pop(0) == "timechart", sys.argv
    options = {}
    while arguments and arguments[0].startswith("-"):
        options[arguments[0]] = arguments[1]
        arguments = arguments[2:]
    if "error" in scenario:
        sys.stdout.write(scenario["error"])
        return 1
    assert options["--event"] == "power"
    interval_s = int(options["--interval"]) / 1000
    time.sleep(scenario.get("start_s", 0.1))
    program = subprocess.Popen(arguments)
    name = Path(arguments[0]).name
    started = dt.datetime.now()  # noqa: DTZ005 - as uProf does
    folder = Path(options["-o"]) / f"AMDuProf-{name}-Timechart_{started:%b-%d-%Y_%H-%M-%S}"
    folder.mkdir()
    columns = [f"socket{n}-package-power" for n in range(len(scenario["packages"]))]
    columns += [f"core{n}-power" for n in range(len(scenario["cores"]))]
    powers = [*scenario["packages"], *scenario["cores"]]
    with (folder / "timechart.csv").open("w") as file:
        version = scenario.get("version", "4.1.424.0")
        file.write(f"AMDPROFILER POWER PROFILE REPORT\n\nAMDuProfCLI Version {version}\n\n")
        file.write(f"LAUNCHED APPLICATION DETAILS\nTarget Path:,{name},\nCPU Core Affinity Mask:,,\n\n")
        file.write("PROFILE DETAILS\nCPU Details:,Family(0x17) Model(0x31)\n")
        file.write(f"Sampling Interval:,{int(options['--interval'])} milli-seconds\n")
        if scenario.get("dated", True):
            file.write(f"Profile Start Time:,{started:%b-%d-%Y_%H-%M-%S},\n\n")
        file.write("PROFILED COUNTERS\nCOUNTER ID,NAME,CATEGORY,UNIT,DESCRIPTION\n")
        for number, column in enumerate(columns):
            file.write(f"{768 + 2 * number}.,{column},Power,W,Average Power reported in Watts.\n")
        file.write("\nPROFILE RECORDS\nRecordId,Timestamp," + ",".join(columns) + ",\n")
        file.flush()
        held, block = "", scenario.get("block", 1)
        last_s = time.monotonic()
        record = 0
        while program.poll() is None:
            time.sleep(max(0.0, last_s + interval_s - time.monotonic()))
            now, now_s = dt.datetime.now(), time.monotonic()  # noqa: DTZ005 - as uProf does
            record += 1
            if record not in scenario.get("missing", []) and scenario.get("rows", True):
                watts = [(energy_j(p, now_s) - energy_j(p, last_s)) / (now_s - last_s) for p in powers]
                stamp = f"{now.hour}:{now.minute}:{now.second}:{now.microsecond // 1000:03d}"
                held += f"{record},{stamp}," + ",".join(f"{w:8.2f}" for w in watts) + ",\n"
                while len(held) >= block:  # also in the middle of a row
                    file.write(held[:block] if block > 1 else held)
                    file.flush()
                    held = held[block:] if block > 1 else ""
            last_s = now_s
        file.write(held)
    time.sleep(scenario.get("stop_s", 0.05))
    return 0


if __name__ == "__main__":
    sys.exit(main())
