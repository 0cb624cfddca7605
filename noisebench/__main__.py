"""``python -m noisebench``, e.g. under torchrun."""

from noisebench.cli import main

if __name__ == "__main__":
    main()
