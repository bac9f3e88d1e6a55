"""Names of the files of prepared data, and the columns of a stored chunk."""

STUDENT = "student"
TEACHER = "teacher"
CHUNKS = "chunks"
DOCUMENT_BYTES = "document_bytes.npy"
MANIFEST = "manifest.json"

CHUNK_COLUMNS = 5
"""student_start, student_end, teacher_start, teacher_end in tokens of the document, and exact (0 or 1)."""
