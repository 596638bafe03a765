"""Builds the libFuzzer targets of this directory and runs them: `python -m tests.fuzz.run --seconds 60`.

Each C file here is one target; `seeds/NAME` (written by hand) and `corpus/NAME` (found by long runs, made small by
`--merge`) are where it starts. What it finds on the way is kept in `.fuzz/NAME-corpus` of the checkout, so that the
next run goes on from there; a finding is written beside it and its path is printed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.support.tiers import repository

HERE = Path(__file__).resolve().parent
FUZZERS = tuple(sorted(path.stem for path in HERE.glob("*.c")))
COMPILER = "clang-19"
SANITIZERS = "-fsanitize=fuzzer,address,undefined"


def build(name: str, directory: Path) -> Path:
    """Compile target `name` into `directory`; raises CalledProcessError with the compiler's words on standard error."""
    kernel = repository() / "kernel"
    binary = directory / name
    command = [COMPILER, "-g", "-O1", SANITIZERS, "-fno-sanitize-recover=undefined", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{kernel / 'core'}", f"-I{kernel / 'include'}", str(HERE / f"{name}.c"), "-o", str(binary)]
    subprocess.run(command, check=True)
    return binary


def starts(name: str) -> list[str]:
    """The directories that a target starts from."""
    return [str(HERE / kind / name) for kind in ("seeds", "corpus") if (HERE / kind / name).is_dir()]


def merge(binary: Path, name: str, directory: Path) -> int:
    """Add to `corpus/NAME` what earlier runs found and nothing kept covers; how many files it has then."""
    kept = HERE / "corpus" / name
    kept.mkdir(parents=True, exist_ok=True)
    command = [str(binary), "-set_cover_merge=1", "-max_len=4096", str(kept), str(HERE / "seeds" / name)]
    subprocess.run([*command, str(directory / f"{name}-corpus")], check=True, capture_output=True)
    return sum(1 for _ in kept.iterdir())


def fuzz(binary: Path, name: str, directory: Path, *, seconds: int = 0, runs: int = 0) -> str | None:
    """Run a target for some seconds, or for so many runs from a fixed seed, which are the same each time.

    None, or what libFuzzer says of the first input that fails a check.
    """
    corpus = directory / f"{name}-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    bound = [f"-runs={runs}", "-seed=1"] if runs else [f"-max_total_time={seconds}"]
    command = [str(binary), *bound, "-max_len=4096", "-timeout=10", "-print_final_stats=1"]
    command += [f"-artifact_prefix={directory}/{name}-", f"-dict={HERE / 'http.dict'}", str(corpus), *starts(name)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return None
    return "\n".join(done.stderr.splitlines()[-40:])


def main(arguments: list[str]) -> int:
    """Run all targets, or those that are named; 1 when one of them finds something."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--merge", action="store_true", help="then keep in corpus/ what covers more than it did")
    parser.add_argument("target", nargs="*", default=list(FUZZERS), help=f"default: {' '.join(FUZZERS)}")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.target if name not in FUZZERS]
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(FUZZERS)}")
    directory = repository() / ".fuzz"
    directory.mkdir(exist_ok=True)
    found = False
    for name in options.target:
        print(f"{name}: {options.seconds} s", flush=True)
        try:
            binary = build(name, directory)
            finding = fuzz(binary, name, directory, seconds=options.seconds)
            if options.merge and finding is None:
                print(f"{name}: {merge(binary, name, directory)} files in corpus/{name}")
        except subprocess.CalledProcessError as error:
            print(f"{name} does not compile (status {error.returncode}); its messages are above", file=sys.stderr)
            found = True
            continue
        if finding is not None:
            print(finding)
            found = True
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
