"""`python -m sae_posttrain.cli`, and `accelerate launch -m sae_posttrain.cli sft …`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
