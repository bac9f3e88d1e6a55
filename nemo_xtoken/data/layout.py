"""Names of the files of prepared data, and the columns of its tables."""

STUDENT = "student"
TEACHER = "teacher"
CHUNKS = "chunks"
DOCUMENTS = "documents.npy"
MANIFEST = "manifest.json"

CHUNK_COLUMNS = 5
"""student_start, student_end, teacher_start, teacher_end in tokens of the document, and exact (0 or 1)."""

DOCUMENT_COLUMNS = 3
"""UTF-8 bytes of the document; its first student token that is learnt, 0 without a prompt; UTF-8 bytes learnt."""
