"""How is a model asked over HTTP, and from a web page? A leaf: without it all else works.

`app.py` says what can be asked and what is answered, `batching.py` how images of different requests go through the
model together, `guard.py` what is refused before anything is computed, `run.py` how the server is started and stopped.
Nothing here reads a path or an address from a request.
"""

from topwork.serve.app import create
from topwork.serve.desk import Served
from topwork.serve.guard import Limits
from topwork.serve.run import LOOPBACK, serve

__all__ = ["LOOPBACK", "Limits", "Served", "create", "serve"]
