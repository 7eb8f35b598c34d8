"""The ef comparison in seconds: fewer vectors, fewer settings, printed and not written.

python test-case/hnsw_compare_ef_quick.py
python test-case/hnsw_compare_ef_quick.py --n 3000 --seed 1
"""

from __future__ import annotations

from collections.abc import Sequence

from hnsw_compare_ef import HEAD, cells, judgements, run, separation
from hnsw_experiment import common_arguments, provenance, table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common_arguments(__doc__)
    parser.set_defaults(n=1500, queries=200)
    options = parser.parse_args(arguments)
    results = run(options, construction=(20, 100, 200), search=(10, 20, 50, 100))
    print(provenance(options, "python test-case/hnsw_compare_ef_quick.py"), "\n")
    print(table(HEAD, cells(results["grid"])), "\n")
    print(table(["setting", *HEAD], cells(results["settings"], labelled=True)), "\n")
    print("\n".join(separation(results["grid"]) + judgements(results["settings"])))


if __name__ == "__main__":
    main()
