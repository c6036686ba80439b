"""``python -m m5lib VERB``: the commands; ``python -m m5lib VERB --help`` says what each takes."""

import importlib
import sys

#: Verb -> module, its function, and what it does.
VERBS = {
    "doctor": ("m5lib.lab.doctor", "main", "is this machine ready; what mends what is not"),
    "shop": ("m5lib.shop.listings", "main", "make a synthetic shop"),
    "notebooks": ("m5lib.lab.notebooks", "main", "run notebooks into reports/"),
    "pretrain": ("m5lib.lab.sweep", "pretrain", "a run of notebook 04; by torchrun on all devices"),
    "sweep": ("m5lib.lab.sweep", "main", "run a notebook at every point of a grid"),
}


def main() -> int | None:
    """The command line. Returns the verb's exit code; 2 where there is no such verb."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb not in VERBS:
        print("usage: python -m m5lib VERB …\n")
        print("\n".join(f"  {name:10} {says}" for name, (_, _, says) in VERBS.items()))
        return 0 if verb in ("-h", "--help") else 2
    module, function, _ = VERBS[verb]
    del sys.argv[1]
    return getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    sys.exit(main())
