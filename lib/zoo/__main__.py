"""The command of maintainers: `python -m lib.zoo` (`lib.zoo.training`)."""

import typer

from lib.zoo.training import main

if __name__ == "__main__":
    typer.run(main)
