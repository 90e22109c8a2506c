"""Checking a blueprint and asking for help must not wait for torch."""

import subprocess
import sys


def test_filling_the_registry_loads_no_heavy_library():
    code = (
        "import sys, zoogen.architectures\n"
        "from zoogen.core.registry import ARCHITECTURES\n"
        "entry = ARCHITECTURES.make('cnn-s', {'dropout': 0.5})\n"
        "assert ARCHITECTURES.describe(entry) == {'name': 'cnn-s', 'dropout': 0.5}\n"
        "ARCHITECTURES.make('import', {'path': 'there.is.no:such'})\n"
        "import zoogen.core.modules\n"
        "print(sorted({'torch', 'torchvision', 'numpy', 'ray', 'pandas', 'h5py'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_planning_a_zoo_does_not_load_torch_s_compiler():
    code = (
        "import sys\n"
        "from zoogen.core.modules import describe\n"
        "from zoogen.core.registry import ARCHITECTURES\n"
        "for name in ('cnn-s', 'mlp', 'resnet18'):\n"
        "    for init in ('uniform', 'normal', 'kaiming_normal', 'xavier_uniform'):\n"
        "        describe(ARCHITECTURES.make(name, {'init': init}), (3, 32, 32), 10)\n"
        "print('torch._dynamo' in sys.modules, 'torchvision' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
