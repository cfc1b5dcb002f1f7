"""The entry point `python -m nld_train.train`; the command itself is in `nld_train.commands.train`.

The worker processes that torch starts for saving import this module again, so nothing is imported at the top.
"""

if __name__ == "__main__":
    from nld_train.startup import nothing_to_save_yet

    # Before all other imports, so that no signal kills a process that has only begun.
    with nothing_to_save_yet():
        import sys

        from nld_train.commands.train import main

        sys.exit(main())
