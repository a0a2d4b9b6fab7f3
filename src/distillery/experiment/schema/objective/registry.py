"""Every term that an objective may name, with its options."""

from collections.abc import Mapping
from types import MappingProxyType

from distillery.errors import UserError
from distillery.experiment.plugins import load_plugin, own_terms
from distillery.experiment.schema.objective import heads, logits, maps, relations
from distillery.experiment.schema.objective.term import TermOptions

# In this order they are built and added up: to move one would change results, in their last digits.
TERMS: Mapping[str, type[TermOptions]] = MappingProxyType(
    {
        "ce": logits.CrossEntropyOptions,
        "kd": logits.KDOptions,
        "dkd": logits.DKDOptions,
        "nkd": logits.NKDOptions,
        "dist": logits.DISTOptions,
        "wttm": logits.WTTMOptions,
        "wsld": logits.WSLDOptions,
        "uskd": logits.USKDOptions,
        "hard_label": logits.HardLabelOptions,
        "mgd": maps.MGDOptions,
        "bake": relations.BAKEOptions,
        "overhaul": maps.OverhaulOptions,
        "rkd": relations.RKDOptions,
        "pkt": relations.PKTOptions,
        "cc": relations.CCOptions,
        "srd": relations.SRDOptions,
        "crd": relations.CRDOptions,
        "similarity": relations.SimilarityOptions,
        "similarity_local": relations.SimilarityLocalOptions,
        "mlkd": relations.MLKDOptions,
        "pskd": relations.PSKDOptions,
        "cskd": relations.CSKDOptions,
        "tfkd": relations.TfKDOptions,
        "fitnet": maps.FitNetOptions,
        "at": maps.ATOptions,
        "nst": maps.NSTOptions,
        "vid": maps.VIDOptions,
        "sp": maps.SPOptions,
        "ickd": maps.ICKDOptions,
        "reviewkd": maps.ReviewKDOptions,
        "masked_generative": maps.MaskedGenerativeOptions,
        "simkd": heads.SimKDOptions,
        "cat": heads.CATOptions,
        "srrl": heads.SRRLOptions,
        "ofa": heads.OFAOptions,
    }
)


def term_options(name: str) -> type[TermOptions]:
    """The options of a term of that name, Distillery's or a plugin's.

    Raises:
        UserError: its plugin is no good.
    """
    if name in TERMS:
        return TERMS[name]
    where = own_terms()[name]
    options = load_plugin(where)
    if not (isinstance(options, type) and issubclass(options, TermOptions)):
        raise UserError(f"{where}: the options of the term {name!r} must be a class made from TermOptions")
    if not isinstance(implementation := getattr(options, "implementation", None), str):
        raise UserError(f'{where}: has no `implementation`; write implementation: ClassVar[str] = "plugins.FILE:CLASS"')
    load_plugin(implementation)
    return options


def terms_with_teacher() -> list[str]:
    """The names of the terms that learn from a teacher."""
    return [name for name, options in TERMS.items() if options.needs.teacher]


def terms_without_logits() -> list[str]:
    """The names of the terms that learn from a teacher's features alone."""
    return [name for name in terms_with_teacher() if not TERMS[name].needs.teacher & {"logits", "classifier"}]
