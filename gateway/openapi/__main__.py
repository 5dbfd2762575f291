"""`python -m gateway.openapi > docs/api.md`: the API reference as Markdown."""

import sys

from gateway.openapi.document import document
from gateway.openapi.markdown import markdown

if __name__ == "__main__":
    sys.stdout.write(markdown(document()))
