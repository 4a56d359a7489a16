"""What Detectron2's loader of Pascal VOC leaves out of the annotation files."""

import xml.etree.ElementTree as ET


def difficult_flags(xml_file: str) -> list[int]:
    """1 for each object of a VOC annotation file that is marked difficult, else 0, in the file's order."""
    return [int(obj.findtext("difficult", "0")) for obj in ET.parse(xml_file).findall("object")]
