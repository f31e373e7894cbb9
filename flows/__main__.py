"""`python -m flows`."""

from flows.cli.main import main

if __name__ == "__main__":
    main()
