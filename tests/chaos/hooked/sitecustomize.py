"""Python imports this as it starts, in every process that has this folder on its path."""

import connections
import fatal_decoder
import mishaps

mishaps.install()
fatal_decoder.install()
connections.install()
