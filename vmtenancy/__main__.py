"""`python -m vmtenancy` is the `vmtenancy` command."""

from vmtenancy.cli.main import main

if __name__ == "__main__":
    main()
