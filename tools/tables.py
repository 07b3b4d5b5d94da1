"""Write the READMEs' tables from the results of the benchmarks, so that no figure is typed by hand.

    python tools/tables.py            # after `make bench`
    python tools/tables.py --check    # exit status 1 if a README does not say what the results say

A README holds `<!-- table: NAME -->` ... `<!-- end -->`; what lies between is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tests" / "benchmarks" / "results"
FOLDERS = ("core", "vision", "text", "molecules", "timeseries")
READMES = [ROOT / "README.md"] + [ROOT / folder / "README.md" for folder in FOLDERS]
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] + ["--:"] * (len(head) - 1), *rows)]
    return "\n".join(lines) + "\n"


def source(name: str, found: dict[str, Any]) -> str:
    """Where a table comes from."""
    return f"\n`{found['command'].strip()}`, seed {found['seed']}: `tests/benchmarks/results/{name}.json`.\n"


def vision_quality(found: dict[str, Any]) -> str:
    """Quality of both models beside held-out images."""
    digits, fashion = found["digits"], found["fashion-mnist"]

    def plain(figure: str) -> str:
        text = re.sub(r" \((digits|fashion-mnist) classifier features\)", " (classifier features)", figure)
        return text.replace("median (", "median (")

    sides = [{plain(name): row for name, row in part["figures"].items()} for part in (digits, fashion)]
    rows = [
        [name, *(f"{side[name][kind]:.3g}" for side in sides for kind in ("value", "reference"))]
        for name in sides[0]
        if name in sides[1]
    ]
    bits = [part["bits per dimension"] for part in (digits, fashion)]
    row = [f"{part['total']:.3f} ± {part['standard error']:.3f}" for part in bits]
    rows.append(["bits per dimension, full bound", row[0], "", row[1], ""])
    for part in ("prior", "gaps", "reconstruction"):
        rows.append([f"… of which {part}", f"{bits[0][part]:.4f}", "", f"{bits[1][part]:.4f}", ""])
    head = ["figure", "digits", "real digits", "Fashion-MNIST", "real Fashion-MNIST"]
    calls = [
        f"{part['options']['steps']} calls, guidance {part['options']['guidance']:g}" for part in (digits, fashion)
    ]
    note = (
        f"{digits['samples']} samples each ({calls[0]}; {calls[1]}), compared at {digits['compared']} and "
        f"{fashion['compared']} images of each kind. The real columns are held-out images in the samples' place.\n"
    )
    return markdown(head, rows) + "\n" + note + source("vision_quality", found)


def vision_speed(found: dict[str, Any]) -> str:
    """The U-Net beside diffusers'."""
    rows = []
    for row in found["rows"]:
        theirs, ours = (
            f"{row[f'{side}_images_per_s']:.3g} ({row[f'{side}_mode']})" for side in ("diffusers", "polydiff")
        )
        goal = f"{row['goal']:.2f}"
        rows.append([f"{row['task']}, {row['size']}, {row['precision']}", theirs, ours, f"{row['ratio']:.2f}", goal])
    head = ["images per second", "diffusers `UNet2DModel`", "polydiff `UNet`", "ratio", "goal"]
    return markdown(head, rows) + source("vision_speed", found)


def vision_loss(found: dict[str, Any]) -> str:
    """Held-out loss of both sides at equal wall time."""
    rows = []
    for row in found["rows"]:
        for point in row["curve"]:
            sides = [f"{point[side]['loss']:.4f} ({point[side]['steps']})" for side in ("diffusers", "polydiff")]
            rows.append([f"{row['data']}, {row['precision']}, {point['seconds']:.0f} s", *sides])
    head = ["held-out loss (steps) at equal wall time", "diffusers `UNet2DModel`", "polydiff `UNet`"]
    return markdown(head, rows) + source("vision_loss", found)


def sampler_overhead(found: dict[str, Any]) -> str:
    """Microseconds per call beyond the network."""
    rows = []
    for size, part in found["sizes"].items():
        for name, row in part["schedulers"].items():
            without = (
                f" ({row['ratio_without_randn']:.2f} without the noise itself)" if "ratio_without_randn" in row else ""
            )
            figures = (f"{row['diffusers_us']:.0f}", f"{row['polydiff_us']:.0f}", f"{row['ratio']:.2f}{without}")
            rows.append([f"{name}, {size}", *figures])
    head = ["microseconds per network call", "diffusers `step`", "polydiff", "ratio"]
    return markdown(head, rows) + source("sampler_overhead", found)


def training_resume(found: dict[str, Any]) -> str:
    """What interruptions do to a run."""
    cut, kills, saving = (found["results"][name] for name in ("interruptions", "kills", "saving"))
    steps, size = cut["steps"], f"{saving['checkpoint bytes'] / 1e6:.0f} MB"
    rows = [
        [
            f"a {steps}-step run interrupted after every step, 0 workers",
            f"{cut['bit-identical, 0 workers']} of {steps}",
        ],
        ["the same with 2 workers", f"{cut['bit-identical, 2 workers']} of {steps}"],
        ["SIGKILL at random moments", f"{kills['resumed and bit-identical']} of {kills['kills']}"],
        ["… of which struck while a checkpoint was written", str(kills["struck while writing"])],
        [
            f"saving {size} every {saving['interval in steps']} steps, of step time",
            f"{saving['share of step time']:.2%}",
        ],
    ]
    return markdown(["interruption", "resumed and equal bit for bit"], rows) + source("training_resume", found)


def samplers(found: dict[str, Any]) -> str:
    """Solvers beside diffusers, k-diffusion's formulas and azula on exact denoisers."""
    rows = []
    for line in found["summary"]:
        name = f"{line['calls']} calls, " + ("all" if line["D"] is None else f"D = {line['D']}")
        errors = (f"{line[side]:.2g}" for side in ("theirs", "classical", "calibrated"))
        ratios = (f"{line[key]:.2f}" for key in ("ratio", "ratio_median", "ratio_swd"))
        rows.append([name, *errors, *ratios])
    head = ["rmse against the exact flow", "best peer", "our classical", "calibrated"]
    head += ["ratio", "of medians", "of sliced Wasserstein"]
    worst = max(line["worst_shared"] for line in found["summary"])
    count = max(line["problems"] for line in found["summary"])
    pairs: dict[str, list[float]] = {}
    for row in found["rows"]:
        for name, pair in row["shared"].items():
            pairs.setdefault(name, []).append(pair["ours"] / pair["theirs"])
    means = ", ".join(f"{name} {statistics.geometric_mean(ratios):.4f}" for name, ratios in pairs.items())
    note = (
        f"\nGeometric means over {count} problems, {found['trajectories']:,} starts. Solvers that both sides have, on "
        f"the same grid, ours to theirs: {means}; on a single problem at most {worst:.4f}.\n"
    )
    return markdown(head, rows) + note + source("samplers", found)


SETS = ("digits", "fashion-mnist")


def vision_methods(found: dict[str, Any]) -> str:
    """Feature FID by method and network calls, on each data set."""
    parts = []
    for name in (name for name in SETS if name in found):
        section, table = found[name], {}
        for row in section["FID"]:
            table.setdefault(row["method"], []).append((row["calls"], row["FID"]))
        rows = [
            [method, ", ".join(f"{fid:.4f} ({calls:.0f})" for calls, fid in sorted(cells))]
            for method, cells in table.items()
        ]
        head = [f"{name}: {section['samples']} samples", "feature FID (network calls)"]
        parts.append(markdown(head, rows))
        if "held-out FID" in section:
            parts.append(f"\nHeld-out images: {section['held-out FID']:.4f}.\n\n")
    return "".join(parts) + source("vision_methods", found)


def vision_bits(found: dict[str, Any]) -> str:
    """Bits per dimension by objective and by reverse variance, on each data set."""
    parts = []
    for name in (name for name in SETS if "bits per dimension" in found.get(name, {})):
        objectives = found[name]["bits per dimension"]
        variances = found[name].get("bits per dimension by variance")
        rows = [[kind, *(f"{bits:.3f}" for bits in by_steps.values())] for kind, by_steps in objectives.items()]
        parts.append(markdown([f"{name}: objective; bits/dim by steps of the bound", *objectives["simple"]], rows))
        if variances is None:
            continue
        rows = [[kind, *(f"{variances[n][kind]:.3f}" for n in variances)] for kind in ("small", "large", "analytic")]
        parts.append(markdown([f"{name}: reverse variance (`velocity` model)", *variances], rows))
    counted = {name: found[name].get("held-out images of the bits") for name in SETS if name in found}
    told = ", ".join(f"{count} held-out images of {name}" for name, count in counted.items() if count)
    return "\n".join(parts) + (f"\n{told}.\n" if told else "") + source("vision_methods", found)


def sampler_steps(found: dict[str, Any]) -> str:
    """What samplers add to their own arithmetic."""
    columns = {
        "bare arithmetic": "arithmetic_us", "sampler": "sampler_us", "extra": "extra_us",
        "of it, the caller's last step": "held_us", "of it, norms": "norms_us",
        "extra at 2 x 1 x 2 x 2": "warm_us", "once per grid": "grid_us",
    }  # fmt: skip
    known = [key for key in columns.values() if all(key in row for row in found["samplers"].values())]
    rows = [[name, *(f"{row[key]:.0f}" for key in known)] for name, row in found["samplers"].items()]
    head = ["microseconds per network call", *(title for title, key in columns.items() if key in known)]
    return markdown(head, rows) + source("sampler_steps", found)


def mutants(found: dict[str, Any]) -> str:
    """The mutation score."""
    row = [f"{found['killed']} of {found['mutants']}"]
    text = markdown(["textbook bugs injected into `core/`", "killed by its tests"], [["all modules", *row]])
    return text + f"\n`{found['command']}`: `tests/benchmarks/results/mutants.json`.\n"


def text_bits(found: dict[str, Any]) -> str:
    """Bits per character by model and steps of the bound."""
    grids, rows = ("1000", "256", "64", "20"), []

    def figure(cell: dict[str, Any] | None) -> str:
        return f"{cell['bits per character']:.3f} ± {cell['standard error']:.3f}" if cell else ""

    for name, model in found["models"].items():
        for reading, bits in model["bits"].items():
            more = model["minus absorbing"].get(reading, {})
            exact = name == "autoregressive"
            cells = [figure(bits["256"]) + " (exact)", "", "", ""] if exact else [figure(bits.get(n)) for n in grids]
            of = "256" if exact else "1000"
            own = ["" if name == "absorbing" else figure(more.get(of))]
            title = f"{name}, {reading.replace('-', ' ')}" if reading else name
            rows.append([title, *cells, *own])
    for name, cell in found["n-gram"].items():
        rows.append([f"{name}s of the training text", figure(cell) + " (exact)", *[""] * 4])
    head = ["bits per character, by steps of the bound", *grids, "more than absorbing"]
    note = (
        f"\n{found['parameters'] / 1e6:.2f} million parameters, {found['steps']} steps of {found['batch']} windows; "
        f"{found['windows']} windows scored, {found['terms']} terms each; ± one standard error over windows, "
        "differences paired by window (`autoregressive`: to the bound of 256 steps).\n"
    )
    return markdown(head, rows) + note + source("text_bits", found)


def text_memory(found: dict[str, Any]) -> str:
    """Peak memory and time of categorical kernels."""
    kernels = list(dict.fromkeys(row["kernel"] for row in found["rows"]))
    works = list(dict.fromkeys(row["work"] for row in found["rows"]))
    at = {(row["kernel"], row["work"]): row for row in found["rows"]}
    rows = [
        [
            work,
            *(f"{at[kernel, work]['peak_in_logits']:.1f} ({at[kernel, work]['seconds']:.1f} s)" for kernel in kernels),
        ]
        for work in works
    ]
    note = (
        f"\nK = {found['K']:,}, length {found['length']}, batch {found['batch']}: one such tensor is "
        f"{found['logits_bytes'] / 2**20:.0f} MiB; one K x K matrix of float64 would be "
        f"{found['matrix_bytes'] / 2**30:.1f} GiB. The network's embedding and one linear layer are counted.\n"
    )
    return markdown(["peak memory in tensors of logits (time)", *kernels], rows) + note + source("text_memory", found)


def within(found: dict[str, Any] | None, digits: int = 3, unit: float = 1.0) -> str:
    """Mean ± standard error; a dash where there is none."""
    if not found or found["mean"] is None:
        return "–"
    error = found["standard error"]
    return f"{unit * found['mean']:.{digits}f}" + ("" if error is None else f" ± {unit * error:.{digits}f}")


def calls(method: str) -> tuple[str, int]:
    """A method's name in order: its own, and its network calls."""
    name, _, number = method.partition(", ")
    return name, int(number.split()[0]) if number.endswith("calls") else 0


def molecules_mini(found: dict[str, Any]) -> str:
    """Coverage and matching on mini-QM9."""
    rows = []
    for method, one in sorted(found["methods"].items(), key=lambda item: calls(item[0])):
        coverage, seconds = one["coverage"], one["seconds per conformer"]
        each = "–" if seconds is None else f"{seconds:.3g}"
        if "seconds per conformer as published" in one:
            each += f" (as published {one['seconds per conformer as published']:.3g})"
        figures = (within(coverage["COV-R"], 1, 100), within(coverage["MAT-R"]))
        figures += (within(coverage["COV-P"], 1, 100), within(coverage["MAT-P"]))
        rows.append([method, *figures, str(coverage["failed"]), each])
    head = ["mini-QM9, P1, 0.5 Å", "COV-R, %", "MAT-R, Å", "COV-P, %", "MAT-P, Å", "failed", "seconds per conformer"]
    trained = "; ".join(
        f"{name} {one['steps']:,} steps of {one['batch']} in {one['seconds'] / 60:.1f} minutes, "
        f"{one['parameters'] / 1e6:.2f} million parameters"
        for name, one in found["training"].items()
    )
    weight = next((one["w_global"] for one in found["methods"].values() if "w_global" in one), None)
    note = (
        f"\n{found['molecules']} test molecules, {found['references']} reference conformers, twice as many drawn; one "
        f"thread; ± one standard error over molecules. ETKDGv3 + MMFF94 made the references: it is the ceiling.\n"
        f"Trained: {trained}."
        + ("" if weight is None else f" The peer's weight of its global branch: {weight:g}.")
        + "\n"
    )
    return markdown(head, rows) + note + source("molecules_mini", found)


def molecules_sweep(found: dict[str, Any]) -> str:
    """Coverage on mini-QM9 by threshold."""
    methods = sorted(found["methods"].items(), key=lambda item: calls(item[0]))
    deltas = [point["delta"] for point in methods[0][1]["sweep"] if point["delta"] <= 0.5]
    rows = [
        [
            method,
            *(
                f"{100 * point['COV-R']:.0f} / {100 * point['COV-P']:.0f}"
                for point in one["sweep"]
                if point["delta"] in deltas
            ),
        ]
        for method, one in methods
    ]
    head = ["COV-R / COV-P, %, by threshold in Å", *(f"{delta:g}" for delta in deltas)]
    return markdown(head, rows) + source("molecules_mini", found)


MOLECULE_FIGURES = {
    "heavy-atom RMSD, best, Å": ("heavy atoms, best", 3),
    "heavy-atom RMSD, mean, Å": ("heavy atoms, mean", 3),
    "all-atom RMSD, best, Å": ("all atoms, best", 3),
    "all-atom RMSD, mean, Å": ("all atoms, mean", 3),
    "error of bond lengths, Å": ("bond lengths, Å", 4),
    "error of bond angles, °": ("bond angles, °", 2),
}


def molecules_qm9(found: dict[str, Any]) -> str:
    """Distances to the B3LYP minimum, and their paired differences to RDKit's."""
    rows = []
    for method, one in sorted(found["methods"].items(), key=lambda item: calls(item[0])):
        figures = (within(one["figures"].get(name), digits) for name, (_, digits) in MOLECULE_FIGURES.items())
        seconds = one["seconds per conformer"]
        rows.append([method, *figures, "–" if seconds is None else f"{1e3 * seconds:.0f}"])
    head = ["to the B3LYP minimum, RMSD in Å", *(name for name, _ in MOLECULE_FIGURES.values()), "ms per conformer"]
    text = markdown(head, rows) + "\n"
    rows = [
        [f"{method} less {base}"]
        + [within(figures.get(name), digits) for name, (_, digits) in MOLECULE_FIGURES.items()]
        for method, bases in sorted(found["differences"].items(), key=lambda item: calls(item[0]))
        for base, figures in bases.items()
        if isinstance(figures, dict)
    ]
    head = ["paired difference", *(name for name, _ in MOLECULE_FIGURES.values())]
    note = (
        f"\n{found['molecules']} QM9 molecules of ring systems that were not in training, best and mean of "
        f"{found['conformers']} conformers; one thread; ± one standard error over molecules.\n"
    )
    return text + markdown(head, rows) + note + source("molecules_qm9", found)


def molecules_throughput(found: dict[str, Any]) -> str:
    """From SMILES to SDF."""
    rows = []
    for name, one in found["runs"].items():
        share = ", ".join(
            f"{count / found['molecules']:.1%} {status}" for status, count in one["statuses"].items() if count
        )
        each = f"{1e3 * one['seconds per conformer']:.0f}"
        rows.append(
            [
                name,
                f"{one['seconds'] / 60:.1f}",
                f"{one['cpu seconds'] / 60:.1f}",
                f"{one['peak bytes'] / 2**30:.2f}",
                each,
                share,
            ]
        )
    head = ["SMILES to SDF", "minutes", "of processors", "peak memory, GiB", "ms per conformer", "rows"]
    origin = ", ".join(f"{count} of {name}" for name, count in found["sources"].items())
    note = (
        f"\n{found['molecules']:,} molecules ({origin}) x {found['conformers']} conformers, {found['processes']} "
        f"processes for the chemistry, {found['threads of a process']} thread(s) each.\n"
    )
    return markdown(head, rows) + note + source("molecules_throughput", found)


def molecules_stereo(found: dict[str, Any]) -> str:
    """Stereochemistry by independent judges."""
    rows = []
    for name, one in found["sides"].items():
        judged = [f"{one[judge]['right']:,} of {one[judge]['judged']:,}" for judge in ("RDKit", "InChI")]
        share = ", ".join(f"{count} {status}" for status, count in one.get("statuses", {}).items()) or "–"
        rows.append([name, f"{one['molecules']:,}", f"{one['conformers']:,}", *judged, share])
    head = ["side", "molecules drawn", "conformers", "right by RDKit", "right by InChI", "rows"]
    listed = ", ".join(f"{count} with {kind}" for kind, count in found["kinds"].items())
    note = f"\n{found['molecules']} molecules: {listed}. What a molecule leaves open may come as it likes.\n"
    return markdown(head, rows) + note + source("molecules_stereo", found)


def spread(found: dict[str, Any] | None, digits: int = 3) -> str:
    """A figure with its standard error; a dash where there is none."""
    return "–" if not found else f"{found['value']:.{digits}f} ± {found['standard error']:.{digits}f}"


def interval(found: dict[str, Any] | None, digits: int = 3) -> str:
    """A ratio or difference with its central 95 %."""
    return "–" if not found else f"{found['value']:.{digits}f} ({found['low']:.{digits}f} … {found['high']:.{digits}f})"


def timeseries_csdi(found: dict[str, Any]) -> str:
    """The published weights through our sampler and with few calls."""
    rows = []
    for name, one in found["methods"].items():
        ratio = one.get("to published", {})
        rows.append(
            [
                "ancestral, 50 calls (published)" if name == "published" else name,
                *(spread(one[key], 4 if key != "coverage" else 3) for key in ("CRPS", "MAE", "coverage")),
                *(interval(ratio.get(f"{key} ratio")) for key in ("CRPS", "MAE")),
                f"{one['seconds per window']:.0f}",
            ]
        )
    head = ["sampler", "CRPS", "MAE", "coverage of 90 %", "CRPS to published", "MAE to published", "seconds a window"]
    checks, first = found.get("checks", {}), next(iter(found["methods"].values()))
    note = (
        f"\n{first['windows']} of {found['test windows']} test windows, {first['cells']:,} held-out cells, "
        f"{found['samples']} samples, of which a perfect forecaster covers {first['expected coverage']:.3f}; ± one "
        f"standard error, (central 95 %) of paired ratios, over windows. The paper, whole fold: CRPS "
        f"{found['published']['CRPS']}, MAE {found['published']['MAE']}."
    )
    if "parity" in checks:
        note += f" Network: within {checks['parity']['largest difference, float32']:.1g} of the authors'."
    if "rule" in checks:
        rule = checks["rule"]
        note += (
            f" Our sampler, fed the noise of the published rule, is within {rule['largest difference, float32']:.1g} "
            f"of it after every one of {rule['steps']} steps in float32 ({rule['largest difference, float64']:.1g} in "
            f"float64)."
        )
    if "precision" in checks and found["precision"] == "bf16":
        half = checks["precision"]
        note += (
            f" Network in bfloat16, which moves samples by "
            f"{half['root mean square difference in standard deviations of the samples']:.1%} of their spread and CRPS "
            f"by {abs(half['bf16 to float32']['CRPS ratio']['value'] - 1):.1%}."
        )
    return markdown(head, rows) + note + "\n" + source("timeseries_csdi", found)


TIMESERIES_SIDES = {
    "pypots-csdi": "CSDI (PyPOTS)",
    "saits": "SAITS (PyPOTS)",
    "brits": "BRITS (PyPOTS)",
    "ours-csdi": "CSDI (our code)",
    "ours": "ours",
}


def timeseries_peers(found: dict[str, Any]) -> str:
    """Imputation after the same training budget."""
    rows = []
    for part in found["sets"]:
        for side, title in TIMESERIES_SIDES.items():
            one = found["systems"].get(f"{part}, {side}")
            for rate, cell in (one or {}).get("rates", {}).items():
                to = cell.get("to pypots-csdi", {})
                figures = [spread(cell.get(key)) for key in ("CRPS", "MAE", "coverage")]
                ratios = [interval(to.get(f"{key} ratio"), 2) for key in ("CRPS", "MAE")]
                rows.append([f"{part}, {rate} %, {title}", *figures, *ratios])
    head = ["set, held out, system", "CRPS", "MAE", "coverage of 90 %", "CRPS to CSDI (PyPOTS)", "MAE to CSDI (PyPOTS)"]
    text, rows = markdown(head, rows) + "\n", []
    for part in found["sets"]:
        for side, title in TIMESERIES_SIDES.items():
            one = found["systems"].get(f"{part}, {side}")
            if not one or not one["training"]:
                continue
            trained, cost = one["training"], one["cost"]
            drawn = ["–", "–"]
            if cost:
                drawn = [f"{cost['seconds per window']:.3g}", f"{cost['peak bytes'] / 2**20:,.0f}"]
            elif one["rates"]:
                cells = list(one["rates"].values())
                each = sum(cell["seconds per window"] for cell in cells) / len(cells)
                drawn = [f"{each:.3g}", f"{max(cell['peak bytes'] for cell in cells) / 2**20:,.0f}"]
            rows.append(
                [
                    f"{part}, {title}", f"{trained['parameters']:,}", f"{trained['seconds'] / 60:.1f}",
                    f"{trained['steps']:,} x {trained['batch']}", f"{trained['peak bytes'] / 2**20:,.0f}", *drawn,
                ]
            )  # fmt: skip
    head = ["set, system", "parameters", "minutes of training", "steps", "peak MiB, training"]
    head += ["seconds a window to fill", "peak MiB, filling"]
    costs = [one["cost"] for one in found["systems"].values() if one["cost"]]
    note = (
        f"\n{found['test windows']} test windows, {found['samples']} samples, one thread, processor time; ± one "
        "standard error, (central 95 %) of paired ratios, over windows."
    )
    if costs:
        note += f" Time and memory to fill: {costs[0]['samples']} samples of a window where a system draws samples."
    return text + markdown(head, rows) + note + "\n" + source("timeseries_peers", found)


def timeseries_cost(found: dict[str, Any]) -> str:
    """Growth of a call and of a step."""
    rows = []
    for name, curve in found["curves"].items():
        side, task, axis = name.split(", ")
        sizes = [(int(size), one) for size, one in curve["points"].items()]
        there = [(size, one) for size, one in sizes if "seconds" in one]
        if not there:
            continue
        (small, low), (large, high) = there[0], there[-1]
        end = next((f"{size:,}: {one['ended']}" for size, one in sizes if "ended" in one), "–")
        exponents = [curve["growth"][key] for key in curve["growth"]]
        memory = (high["peak bytes"] - high["base bytes"]) / 2**20
        rows.append(
            [
                f"{TIMESERIES_SIDES[side]}, {task}, {axis}", f"{low['seconds']:.3g} ({small:,})",
                f"{high['seconds']:.3g} ({large:,})", f"{memory:,.0f}",
                *("–" if p is None else f"{p:.2f}" for p in exponents), end,
            ]
        )  # fmt: skip
    head = ["one window, one sample", "seconds, smallest", "seconds, largest", "MiB, largest"]
    head += ["exponent", "exponent from 100", "ended at"]
    note = (
        f"\nFeatures at {found['length']} rows, rows (length) at {found['features']} features; one thread. An "
        "imputation is 50 such calls in CSDI, 10 in ours.\n"
    )
    return markdown(head, rows) + note + source("timeseries_cost", found)


def timeseries_calibration(found: dict[str, Any]) -> str:
    """Coverage of hidden cells."""
    rows = []
    for name, one in found["sets"].items():
        cells = [one["summary"][kind] for kind in ("both", "single", "runs")]
        figures = [
            f"{100 * cell['coverage']:.1f}" + ("" if cell["error"] is None else f" ± {100 * cell['error']:.1f}")
            for cell in cells
        ]
        rows.append([f"{name}, {len(one['seeds'])} fits", *figures, f"{cells[0]['cells']:,}"])
    head = ["90 % intervals cover, %", "all hidden cells", "single cells", "runs of 3 to 12", "cells"]
    note = (
        f"\n{found['samples']} samples, of which a perfect forecaster covers {100 * found['expected coverage']:.1f} %; "
        "± one standard error over fits.\n"
    )
    return markdown(head, rows) + note + source("timeseries_calibration", found)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "vision_quality": vision_quality,
    "vision_speed": vision_speed,
    "vision_loss": vision_loss,
    "sampler_overhead": sampler_overhead,
    "training_resume": training_resume,
    "samplers": samplers,
    "vision_methods": vision_methods,
    "vision_bits": vision_bits,
    "sampler_steps": sampler_steps,
    "mutants": mutants,
    "text_bits": text_bits,
    "text_memory": text_memory,
    "molecules_mini": molecules_mini,
    "molecules_sweep": molecules_sweep,
    "molecules_qm9": molecules_qm9,
    "molecules_throughput": molecules_throughput,
    "molecules_stereo": molecules_stereo,
    "timeseries_csdi": timeseries_csdi,
    "timeseries_peers": timeseries_peers,
    "timeseries_cost": timeseries_cost,
    "timeseries_calibration": timeseries_calibration,
}
FILES = {"vision_bits": "vision_methods", "molecules_sweep": "molecules_mini"}
"""Tables whose results lie in a file of another name."""


def filled(text: str) -> str:
    """A README with its tables as the results say."""

    def table(match: re.Match[str]) -> str:
        name = match[2]
        path = RESULTS / f"{FILES.get(name, name)}.json"
        if not path.exists():  # not measured yet
            return match[0]
        found = json.loads(path.read_text(encoding="utf-8"))
        return match[1] + TABLES[name](found) + match[3]

    return PLACE.sub(table, text)


def main() -> None:
    """Rewrite the READMEs, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    there = [path for path in READMES if path.exists()]
    stale = [path for path in there if filled(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")]
    if check:
        sys.exit("".join(f"{path.relative_to(ROOT)}: its tables are not those of the results\n" for path in stale) or 0)
    for path in stale:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
