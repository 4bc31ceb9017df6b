"""``python -m vcreg_fx``."""

from .cli import main

if __name__ == "__main__":
    main()
