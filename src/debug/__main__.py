"""``python -m debug``."""

from debug.commands import main

if __name__ == "__main__":
    main()
