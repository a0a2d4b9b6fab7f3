"""Run the command line as ``python -m distillery``, which is how torchrun starts it."""

from distillery.cli import main

main()
