"""``python -m m5lib doctor``. The other commands are modules of their own: ``python -m
m5lib.lab.notebooks``, ``m5lib.lab.sweep``, …"""

import argparse
import sys

from m5lib.lab import doctor


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m m5lib", description="Is this machine ready?")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor.arguments(
        commands.add_parser(
            "doctor",
            help="check versions, builds, FFmpeg, kernels and disk, and say what mends each fault",
        )
    )
    return doctor.run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
