"""Python imports this module on start-up in every process that has this folder on its path."""

from chaos import connections, incidents
from support import fatal_decoder

incidents.install()
fatal_decoder.install()
connections.install()
