"""The subcommands of `lightwam`, a module each: `run(arguments)` reads the command line and calls one function."""
