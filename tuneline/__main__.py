"""`python -m tuneline`: the command line."""

from tuneline.cli import main

if __name__ == "__main__":
    main()
