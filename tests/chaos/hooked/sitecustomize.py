"""Python imports this as it starts, in every process that has this folder on its path."""

from chaos import connections, mishaps
from support import fatal_decoder

mishaps.install()
fatal_decoder.install()
connections.install()
