"""What provisioners need, held against what is known before the boot.

Each lack is a problem by itself, with what to do about it. What is not known of an image (its facts
are None) is no problem: the guest finds out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from microvm.abc import ImageFacts, ProvisionerNeeds
from microvm.config import ConfigProblem

if TYPE_CHECKING:
    from microvm.abc import Provisioner
    from microvm.config import BootSource, MachineConfig
    from microvm.plugins import BackendFactory


@attrs.frozen(kw_only=True)
class ImagePart:
    """The machine's kernel, or what its root file system is on."""

    where: str
    """Its place in the configuration."""
    path: Path
    facts: ImageFacts = attrs.field(factory=ImageFacts)


def root_of(config: MachineConfig, boot: BootSource) -> ImagePart | None:
    """Where the guest's programs come from: the root drive if there is one, else the initrd."""
    for index, drive in enumerate(config.drives):
        if drive.root:
            return ImagePart(where=f"drives[{index}]", path=drive.path)
    return None if boot.initrd is None else ImagePart(where="boot.initrd", path=boot.initrd)


def need_problems(
    provisioners: Mapping[str, Provisioner],
    config: MachineConfig,
    backend: BackendFactory,
    boot: BootSource | None,
    root: ImagePart | None,
) -> list[ConfigProblem]:
    """What is known to be missing; provisioners are asked, also for what they know of an image.

    Args:
        provisioners: By their names.
        config: The machine's, with the drives that provisioners bring.
        backend: The one that it runs on.
        boot: None where none was found.
        root: As `root_of` gives it; None where it is not sure.
    """

    def known(part: ImagePart) -> ImagePart:
        answers = (one.image_facts(part.path) for one in provisioners.values())
        facts = next((answer for answer in answers if answer is not None), ImageFacts())
        return attrs.evolve(part, facts=facts)

    needs = {name: provisioner.needs(config) for name, provisioner in provisioners.items()}
    problems = list(_lacks_beside(needs, config, backend))
    # Looked at only for who needs something of it: every boot waits for this.
    if boot is not None and any(need.kernel_features for need in needs.values()):
        problems += _kernel_lacks(needs, known(ImagePart(where="boot.kernel", path=boot.kernel)))
    if root is not None and any(need.packages or need.files for need in needs.values()):
        problems += _root_lacks(needs, known(root))
    return problems


Needs = Mapping[str, ProvisionerNeeds]
"""By the provisioner's name."""


def _lacks_beside(
    needs: Needs, config: MachineConfig, backend: BackendFactory
) -> Iterator[ConfigProblem]:
    for name, need in needs.items():
        for other in sorted(need.provisioners - set(config.provisioners)):
            what = f"{name!r} needs {other!r}, which is not among them."
            yield ConfigProblem("provisioners", what, f"Add {other!r}.")
        for capability in sorted(need.capabilities - backend.capabilities):
            what = f"{name!r} needs the capability {capability.value!r}; {backend.name!r} lacks it."
            remedy = f"Take another backend, or leave {name!r} out of the provisioners."
            yield ConfigProblem("backend", what, remedy)


def _kernel_lacks(needs: Needs, kernel: ImagePart) -> Iterator[ConfigProblem]:
    built_in = kernel.facts.kernel_features
    for name, need in needs.items():
        if built_in is not None and (missing := need.kernel_features - built_in):
            yield ConfigProblem(
                kernel.where,
                f"{name!r} needs {_list(missing)} built into the kernel; {kernel.path} is without.",
                need.remedy or "Give boot= another kernel.",
            )


def _root_lacks(needs: Needs, root: ImagePart) -> Iterator[ConfigProblem]:
    packages, files = root.facts.packages, root.facts.files
    for name, need in needs.items():
        if packages is not None:
            missing = [one for one in need.packages if not packages & set(_alternatives(one))]
            if missing:
                names = ",".join(sorted(_alternatives(one)[0] for one in need.packages))
                make = f"Start from a disk with them: microvm image build --packages {names}"
                yield _lack(name, f"the packages {_list(missing)}", root, need.remedy or make)
        if files is not None and (absent := need.files - files):
            take = "Start from a disk that has them (drives, root=True)."
            yield _lack(name, f"the files {_list(absent)}", root, need.remedy or take)


def _lack(name: str, what: str, root: ImagePart, remedy: str) -> ConfigProblem:
    return ConfigProblem(root.where, f"{name!r} needs {what}; {root.path} is without.", remedy)


def _alternatives(package: str) -> list[str]:
    return [name.strip() for name in package.split("|")]


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
