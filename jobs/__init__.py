"""What runs on the cluster: one file per command, and the command line. Ray lives here and only here."""

import gc
from typing import Final

# Torch and Ray make some hundred thousand objects when they are imported, all of which stay. To look through
# them for garbage as often as Python does by default is half a second of the start of driver and worker.
_OBJECTS_BEFORE_COLLECTING: Final = 50_000
gc.set_threshold(_OBJECTS_BEFORE_COLLECTING, *gc.get_threshold()[1:])
