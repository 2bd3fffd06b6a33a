"""`d2net` and `python -m d2net`."""

import sys

try:
    from d2net.cli import main
except KeyboardInterrupt:  # `main` itself handles a later one
    sys.exit(130)

if __name__ == "__main__":
    main()
