"""The demo as a Space, or with `python app.py`.

`LVIT_MODEL` names another checkpoint than the shipped one. `LVIT_ANY_MODEL=1` lets visitors name any folder and any
model on the Hub, on a page that its own machine alone reaches.
"""

import os
import sys


try:
    import spaces  # noqa: F401 (on a Space it must come before anything that starts CUDA)

    from lvit_hf.io.port import check_port

    check_port()
    from lvit_hf.demo import launch, load_demo
    from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT

    demo = load_demo(os.environ.get("LVIT_MODEL", DEFAULT_CHECKPOINT), os.environ.get("LVIT_ANY_MODEL") == "1")
    if __name__ == "__main__":
        launch(demo)
except (OSError, ValueError) as error:
    sys.exit(f"Error: {error}")
