"""How the simulator names itself in what it writes, so that nobody takes its results for NetFabb's."""

from __future__ import annotations

from typing import Final

from lpbf_data.case.record import OWN_SOLVER

VERSION: Final = "0.4.3"
"""Version of the simulator, raised when its files come to mean something else: 0.1.0 wrote symmetric tensors in the
order of EnSight's manual and elastic strains without the inherent ones; 0.2.0 writes both as NetFabb does; 0.3.0 has
other physics (a plate that gives way, calibrated strains, layers that shrink one after the other); in 0.4.0 metal at
NetFabb's cut gives way too, and solutions are found at less cost. The corpora that surrogates learn from began with
0.4.0, so later versions only repair: 0.4.1 gives the same wherever no piece of a part hangs on nothing while it is
built, and holds such pieces where 0.4.0 could carry them away; 0.4.2 gives the same as 0.4.1 wherever blocks are
factored, and where iterations leave little; it goes on where they would leave more than about 0.001 mm; 0.4.3 meshes a
part otherwise where its horizontal faces lie at the centres of cells: rounding had filled such layers in patches."""

GENERATOR: Final = f"lpbf-flare simulate {VERSION}"
"""In file descriptions and in a line of its own in every log."""

SOLVER_VERSION: Final = f"{VERSION}{OWN_SOLVER}"
"""Instead of NetFabb's version, from where it gets into manifests and cards."""
