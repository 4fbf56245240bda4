"""Run by path: makes this folder a package that no other module can be mistaken for, and starts it.

The first argument is a launch, or ``zygote`` and what a zygote needs.
"""

import sys

_folder = __file__.rpartition("/")[0]
if sys.path and sys.path[0] == _folder:
    # Neither the program nor what is imported for it may be looked for here.
    del sys.path[0]

_package = type(sys)("_corerun")
_package.__path__ = [_folder]
sys.modules["_corerun"] = _package

if sys.argv[1] == "zygote":
    from _corerun.zygote import main, program
else:
    from _corerun.launch import main, program

for _name in [name for name in sys.modules if name.partition(".")[0] == "_corerun"]:
    # The program sees an interpreter as it begins.
    del sys.modules[_name]

# From here, so that a program has the same frames above it however it is started.
program.run(main())
