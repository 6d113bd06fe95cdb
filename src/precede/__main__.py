"""`python -m precede`, which is how launchers start it: `accelerate launch -m precede build recipe.yaml`."""

from precede.cli.main import main

main()
