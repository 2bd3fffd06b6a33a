"""`d2net` and `python -m d2net`."""


def main() -> None:
    """Run the `d2net` command."""
    try:
        from d2net.cli import main as run
    except KeyboardInterrupt:  # main itself handles a later one
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
