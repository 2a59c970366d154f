"""Every test checks the shapes and types in lightwam's signatures while it runs."""

from jaxtyping import install_import_hook

install_import_hook("lightwam", "beartype.beartype")
