"""``updetr NAME ...``: the commands of this package."""

import importlib
import sys

# Name -> module with the function that takes the arguments after the name, and what it does.
COMMANDS = {
    "train": ("train", "run", "pre-train, fine-tune or evaluate a model"),
    "fetch": ("fetch", "main", "public weights by name"),
    "convert": ("convert", "main", "convert checkpoints of other projects, and back"),
    "demo": ("demo", "main", "draw what a model finds in images"),
    "proposals": ("proposals", "main", "make boxes for images without labels"),
    "self-train": ("self_train", "main", "pre-train on boxes that the model of the round before has found"),
    "export": ("export", "main", "write a detector as ONNX"),
    "report": ("report", "main", "one HTML page about one or several runs"),
    "curves": ("curves", "main", "learning curves of several runs in one picture"),
    "import": ("import_labels", "main", "write labels of other formats in COCO's"),
    "split": ("split", "main", "divide labels for training with few of them"),
    "compare": ("compare", "main", "which start and detector suit your data, measured"),
    "pack-shards": ("pack_shards", "main", "pack images into tar shards"),
}


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<12} {help_}" for name, (*_, help_) in COMMANDS.items()]
    return "\n".join(["usage: updetr COMMAND [...]", "", *lines, "", "`updetr COMMAND --help` explains one."])


def main(argv: list[str] | None = None) -> int | None:
    """Run a command; returns its exit status."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"updetr: there is no command '{name}'.\n\n{usage()}", file=sys.stderr)
        return 2
    module_name, function, _ = COMMANDS[name]
    sys.argv[0] = f"updetr {name}"  # what the command's own help calls it
    try:
        module = importlib.import_module(f"updetr_d2.cli.{module_name}")
    except ModuleNotFoundError as error:  # of an extra
        if (error.name or "").startswith("updetr_d2"):
            raise
        print(f"updetr {name} needs the Python package '{error.name}'; install it first.", file=sys.stderr)
        return 1
    return getattr(module, function)(arguments)


if __name__ == "__main__":
    sys.exit(main())
