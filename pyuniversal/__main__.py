"""`python -m pyuniversal`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="pyuniversal")
