"""The demo, from nothing: what `make demo` reports.

    python -m tests.benchmarks.demo

The recipe is built in a folder of its own, so that no stage is skipped. Wants an otherwise idle machine.
"""

import tempfile
from pathlib import Path

import msgspec

import vitdeploy as vd
from tests.benchmarks import results
from tests.benchmarks.figures import HERE, Demo

RECIPE = HERE.parents[1] / "recipes" / "fashion_mnist.toml"


def main() -> None:
    """Build and store."""
    options = results.parser(__doc__).parse_args()
    job = vd.Recipe.load(RECIPE)
    if options.quick:
        bench = msgspec.structs.replace(job.bench, rounds=2, seconds=0.01)
        job = msgspec.structs.replace(job, bench=bench, validate=msgspec.structs.replace(job.validate, limit=50))
    with tempfile.TemporaryDirectory() as scratch:
        report = vd.build(job, Path(scratch) / "demo", progress=lambda what, done, total: done or results.say(what))
    results.store("demo", Demo(report), options)


if __name__ == "__main__":
    main()
