"""Python imports this as it starts, in every process that has this folder on its path."""

import mishaps

mishaps.install()
