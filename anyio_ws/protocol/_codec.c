/* The frame codec of RFC 6455 §5 in C. The interface, and what each function promises, is that of _pycodec.py.

Theory of operation. As in _pycodec.py, bytes can be in three places: in the chunk, in the message that is being
assembled, and held back. What differs:

- An unfragmented message that is in the chunk as a whole is unmasked straight into the str or bytes that is returned.
- Any other message is assembled in a bytes object that nobody else has seen, longer than what has arrived; it is
  returned itself, cut to length, if the message is binary. During a large payload a `Loan` exports the free end of it
  as a memoryview. The loan must be repaid, which means that no view of the memory exists any more, before the decoder
  touches the bytes object again; that is how nothing that was returned can ever be written to.
- Rare texts are not composed here: frame_rules.py has a function for each violation.

Rules of this file:

- Every read of the chunk is preceded by a comparison with what is left of it, and no pointer is ever moved past its
  end. Lengths from the wire are uint64_t until they are known to be no larger than max_size, which fits Py_ssize_t.
- Whatever runs Python code (on_control, transform, a finaliser that an allocation sets off, another thread meanwhile) finds the
  decoder busy, and gets a RuntimeError if it calls it. On a free-threaded build a critical section protects the flag.
- A C function that returns -1 or NULL has set an exception. An exception in the middle of decoding, which only
  a callback or a lack of memory can cause, ends the decoder: it decodes nothing more.
- No static mutable state: types and the functions of frame_rules.py are in the module's state.
*/

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if PY_VERSION_HEX < 0x030C0000
#include <structmember.h>
#define Py_T_BOOL T_BOOL
#define Py_T_INT T_INT
#define Py_T_OBJECT_EX T_OBJECT_EX
#define Py_T_PYSSIZET T_PYSSIZET
#define Py_READONLY READONLY
#endif

#ifndef Py_BEGIN_CRITICAL_SECTION /* before 3.13 there is always a GIL */
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

enum { CONTINUATION = 0x0, TEXT = 0x1, BINARY = 0x2, CLOSE = 0x8, PONG = 0xA };
enum { FIN = 0x80, RSV = 0x70, MASKED = 0x80 };
enum { KEY_SIZE = 4, LONGEST_HEADER = 14 };

/* The same as in frame_rules.py and _pycodec.py, where the reasons are. */
enum { MESSAGE_OVERHEAD = 64, LEND_FROM = 16 * 1024, FIRST_RESERVE = 64 * 1024, POOL_SIZE = 4096 };

typedef struct {
    PyTypeObject *loan_type;
    PyObject *rules; /* frame_rules.py */
    PyObject *violation; /* ProtocolError */
} State;


/* Arguments */

#define FASTCALL(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL

static int check_count(Py_ssize_t count, Py_ssize_t least, Py_ssize_t most)
{
    if (count >= least && count <= most) { return 0; }
    PyErr_Format(PyExc_TypeError, "expected %zd to %zd arguments, got %zd", least, most, count);
    return -1;
}

/* Bytes that belong to somebody else, kept alive and in place until they are closed. */
typedef struct {
    const uint8_t *data;
    Py_ssize_t size;
    PyObject *owner; /* the bytes object that they are in, or another object, or NULL if they are in `view` */
    Py_buffer view;
} Bytes;

static int open_bytes(Bytes *bytes, PyObject *object, int or_str)
{
    bytes->view.obj = NULL;
    if (PyBytes_CheckExact(object)) {
        bytes->owner = Py_NewRef(object);
    }
    else if (or_str && PyUnicode_Check(object)) {
        /* Not PyUnicode_AsUTF8AndSize: it would keep the encoded form for as long as the str lives. */
        bytes->owner = PyUnicode_IS_COMPACT_ASCII(object) ? Py_NewRef(object) : PyUnicode_AsUTF8String(object);
    }
    else if (PyObject_GetBuffer(object, &bytes->view, PyBUF_SIMPLE) == 0) {
        bytes->owner = NULL;
        bytes->data = bytes->view.buf;
        bytes->size = bytes->view.len;
        return 0;
    }
    else if (PyErr_ExceptionMatches(PyExc_BufferError)) { /* not contiguous, so it needs a copy */
        PyErr_Clear();
        bytes->view.obj = NULL;
        bytes->owner = PyBytes_FromObject(object);
    }
    else {
        return -1;
    }
    if (!bytes->owner) { return -1; }
    int is_bytes = PyBytes_Check(bytes->owner);
    bytes->data = is_bytes ? (const uint8_t *)PyBytes_AS_STRING(bytes->owner) : PyUnicode_DATA(bytes->owner);
    bytes->size = is_bytes ? PyBytes_GET_SIZE(bytes->owner) : PyUnicode_GET_LENGTH(bytes->owner);
    return 0;
}

static void close_bytes(Bytes *bytes)
{
    Py_XDECREF(bytes->owner);
    PyBuffer_Release(&bytes->view);
}

/* A bytes object for two parts. */
static PyObject *new_bytes(Py_ssize_t head, Py_ssize_t tail)
{
    return tail > PY_SSIZE_T_MAX - head ? PyErr_NoMemory() : PyBytes_FromStringAndSize(NULL, head + tail);
}

/* A masking key, which stays the caller's. */
static int take_key(PyObject *object, const uint8_t **key)
{
    if (!PyBytes_Check(object) || PyBytes_GET_SIZE(object) != KEY_SIZE) {
        PyErr_SetString(PyExc_ValueError, "a masking key must be 4 bytes");
        return -1;
    }
    *key = (const uint8_t *)PyBytes_AS_STRING(object);
    return 0;
}


/* Masking */

/* Where the loader can choose between them, also a version for wider vectors: 1.5 times as fast while it all fits into
   the cache. Sanitisers are not ready yet when the loader asks. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__UCLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORISED
#endif

/* XOR src with the key, repeated, into dst, which may be src. RFC 6455 §5.3.
   Returns whether the result has a byte that is not ASCII. Each step loads before it stores, so that compilers use
   vectors without having to prove anything about src and dst; with an array instead of four variables they do not. */
VECTORISED
static int mask(uint8_t *dst, const uint8_t *src, Py_ssize_t size, const uint8_t *key)
{
    uint64_t word, twice, seen = 0;
    memcpy(&twice, key, 4);
    memcpy((uint8_t *)&twice + 4, key, 4);
    for (; size >= 32; size -= 32, src += 32, dst += 32) {
        uint64_t a, b, c, d;
        memcpy(&a, src, 8);
        memcpy(&b, src + 8, 8);
        memcpy(&c, src + 16, 8);
        memcpy(&d, src + 24, 8);
        a ^= twice, b ^= twice, c ^= twice, d ^= twice;
        seen |= (a | b) | (c | d);
        memcpy(dst, &a, 8);
        memcpy(dst + 8, &b, 8);
        memcpy(dst + 16, &c, 8);
        memcpy(dst + 24, &d, 8);
    }
    for (; size >= 8; size -= 8, src += 8, dst += 8) {
        memcpy(&word, src, 8);
        word ^= twice;
        seen |= word;
        memcpy(dst, &word, 8);
    }
    for (int i = 0; i < size; i++) {
        dst[i] = src[i] ^ key[i & 3];
        seen |= dst[i];
    }
    return (seen & 0x8080808080808080) != 0;
}

static PyObject *apply_mask(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    const uint8_t *key;
    Bytes data;
    if (check_count(count, 2, 2) < 0 || take_key(args[1], &key) < 0 || open_bytes(&data, args[0], 0) < 0) {
        return NULL;
    }
    PyObject *masked = PyBytes_FromStringAndSize(NULL, data.size);
    if (masked) { mask((uint8_t *)PyBytes_AS_STRING(masked), data.data, data.size, key); }
    close_bytes(&data);
    return masked;
}


/* Encoding */

/* Write everything of a frame that precedes its payload, at most LONGEST_HEADER bytes. Returns their number. */
static int write_header(uint8_t *header, int first, uint64_t length, const uint8_t *key)
{
    int mask_bit = key ? MASKED : 0;
    int width = 0;
    header[0] = (uint8_t)first;
    /* "Note that in all cases, the minimal number of bytes MUST be used to encode the length" (§5.2) */
    if (length < 126) {
        header[1] = (uint8_t)(mask_bit | (int)length);
    }
    else {
        width = length < 0x10000 ? 2 : 8;
        header[1] = (uint8_t)(mask_bit | (width == 2 ? 126 : 127));
    }
    for (int i = 0; i < width; i++) {
        header[2 + i] = (uint8_t)(length >> 8 * (width - 1 - i));
    }
    if (key) { memcpy(header + 2 + width, key, KEY_SIZE); }
    return 2 + width + (key ? KEY_SIZE : 0);
}

/* Compute the first byte of a frame from the arguments opcode and fin; the latter may be missing. */
static int take_first(PyObject *opcode, PyObject *fin)
{
    long first = PyLong_AsLong(opcode);
    if (first == -1 && PyErr_Occurred()) { return -1; }
    if (first < 0 || first > 0xFF) {
        PyErr_Format(PyExc_OverflowError, "opcode %ld does not fit the first byte of a frame", first);
        return -1;
    }
    int is_last = fin ? PyObject_IsTrue(fin) : 1;
    return is_last < 0 ? -1 : (int)first | (is_last ? FIN : 0);
}

static PyObject *make_frame(int first, PyObject *object, const uint8_t *key)
{
    uint8_t header[LONGEST_HEADER];
    Bytes payload;
    if (open_bytes(&payload, object, 1) < 0) { return NULL; }
    int start = write_header(header, first, (uint64_t)payload.size, key);
    PyObject *frame = new_bytes(start, payload.size);
    if (frame) {
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(frame);
        memcpy(out, header, (size_t)start);
        if (key) {
            mask(out + start, payload.data, payload.size, key);
        }
        else if (payload.size) {
            memcpy(out + start, payload.data, (size_t)payload.size);
        }
    }
    close_bytes(&payload);
    return frame;
}

static PyObject *encode_header(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    const uint8_t *key = NULL;
    uint8_t header[LONGEST_HEADER];
    if (check_count(count, 2, 4) < 0 || (count > 2 && args[2] != Py_None && take_key(args[2], &key) < 0)) {
        return NULL;
    }
    int first = take_first(args[0], count > 3 ? args[3] : NULL);
    if (first < 0) { return NULL; }
    unsigned long long length = PyLong_AsUnsignedLongLong(args[1]);
    if (length == (unsigned long long)-1 && PyErr_Occurred()) { return NULL; }
    return PyBytes_FromStringAndSize((const char *)header, write_header(header, first, length, key));
}

static PyObject *encode_frame(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    const uint8_t *key = NULL;
    if (check_count(count, 2, 4) < 0 || (count > 2 && args[2] != Py_None && take_key(args[2], &key) < 0)) {
        return NULL;
    }
    int first = take_first(args[0], count > 3 ? args[3] : NULL);
    return first < 0 ? NULL : make_frame(first, args[1], key);
}


/* Masking keys */

typedef struct {
    PyObject_HEAD
    PyObject *pool; /* bytes, or NULL before the first key */
    Py_ssize_t offset;
} MaskingKeys;

static PyObject *refill(MaskingKeys *self)
{
    PyObject *os = PyImport_ImportModule("os");
    PyObject *pool = os ? PyObject_CallMethod(os, "urandom", "i", POOL_SIZE) : NULL;
    Py_XDECREF(os);
    if (pool && (!PyBytes_CheckExact(pool) || PyBytes_GET_SIZE(pool) != POOL_SIZE)) {
        PyErr_SetString(PyExc_SystemError, "os.urandom() returned something else than it was asked for");
        Py_CLEAR(pool);
    }
    if (pool) {
        Py_XSETREF(self->pool, pool);
        self->offset = 0;
    }
    return pool;
}

/* Copy the next key. */
static int next_key(MaskingKeys *self, uint8_t *key)
{
    int result = -1;
    Py_BEGIN_CRITICAL_SECTION(self);
    if ((self->pool && self->offset < POOL_SIZE) || refill(self)) {
        memcpy(key, PyBytes_AS_STRING(self->pool) + self->offset, KEY_SIZE);
        self->offset += KEY_SIZE;
        result = 0;
    }
    Py_END_CRITICAL_SECTION();
    return result;
}

static PyObject *keys_next(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    uint8_t key[KEY_SIZE];
    return next_key((MaskingKeys *)op, key) < 0 ? NULL : PyBytes_FromStringAndSize((const char *)key, KEY_SIZE);
}

static PyObject *keys_encode_frame(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    uint8_t key[KEY_SIZE];
    if (check_count(count, 2, 3) < 0 || next_key((MaskingKeys *)op, key) < 0) { return NULL; }
    int first = take_first(args[0], count > 2 ? args[2] : NULL);
    return first < 0 ? NULL : make_frame(first, args[1], key);
}

static void keys_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    Py_XDECREF(((MaskingKeys *)op)->pool);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef keys_methods[] = {
    {"next", keys_next, METH_NOARGS, PyDoc_STR("next($self, /)\n--\n\nReturn a key that has not been used, 4 bytes.")},
    {"encode_frame", FASTCALL(keys_encode_frame),
     PyDoc_STR("encode_frame($self, opcode, payload, fin=True, /)\n--\n\nEncode a frame, masked with the next key.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot keys_slots[] = {
    {Py_tp_doc, "MaskingKeys()\n--\n\nThe masking keys of one client connection."},
    {Py_tp_dealloc, keys_dealloc},
    {Py_tp_methods, keys_methods},
    {0, NULL},
};

static PyType_Spec keys_spec = {
    .name = "anyio_ws.protocol._codec.MaskingKeys",
    .basicsize = sizeof(MaskingKeys),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = keys_slots,
};


/* Lending */

/* What exports the free end of a message's memory. It has the memory only while that is lent, so that whoever gets hold
   of it (memoryview.obj) can do nothing with it afterwards. */
typedef struct {
    PyObject_HEAD
    PyObject *memory; /* bytes; NULL once repaid */
    Py_ssize_t start, size, exports;
} Loan;

static int loan_getbuffer(PyObject *op, Py_buffer *view, int flags)
{
    Loan *loan = (Loan *)op;
    int result = -1;
    Py_BEGIN_CRITICAL_SECTION(op);
    if (loan->memory) {
        result = PyBuffer_FillInfo(view, op, PyBytes_AS_STRING(loan->memory) + loan->start, loan->size, 0, flags);
    }
    else {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "this memory is not lent any more");
    }
    if (result == 0) { loan->exports++; }
    Py_END_CRITICAL_SECTION();
    return result;
}

static void loan_releasebuffer(PyObject *op, Py_buffer *Py_UNUSED(view))
{
    Py_BEGIN_CRITICAL_SECTION(op);
    ((Loan *)op)->exports--;
    Py_END_CRITICAL_SECTION();
}

static void loan_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    Py_XDECREF(((Loan *)op)->memory);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyType_Slot loan_slots[] = {
    {Py_tp_dealloc, loan_dealloc},
    {Py_bf_getbuffer, loan_getbuffer},
    {Py_bf_releasebuffer, loan_releasebuffer},
    {0, NULL},
};

static PyType_Spec loan_spec = {
    .name = "anyio_ws.protocol._codec.Loan",
    .basicsize = sizeof(Loan),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = loan_slots,
};


/* Decoding */

typedef struct {
    PyObject_HEAD
    char is_client;
    Py_ssize_t usual_max_size, max_size; /* the latter is for the message that has begun, or the next one */
    PyObject *on_control, *on_error, *on_too_big, *transform;
    int rsv; /* the bits that transform is for */
    PyObject *scratch; /* None, or a buffer that belongs to the caller */

    /* The outcome. */
    Py_ssize_t room;
    char pending, closed, ended;
    PyObject *error; /* None, or a ProtocolError */
    Py_ssize_t fed, messages, fragments;

    /* Whether one of the methods is at work. */
    char busy;

    /* Not decoded yet: held[offset:]; NULL if there is nothing. */
    PyObject *held;
    Py_ssize_t offset;

    /* The message that has begun and not ended. Of `message`, which is bytes or NULL, [:checked] is known to be UTF-8,
       [:size] has arrived, and the rest is reserved; `taken` bytes that came before are not there any more. No other
       reference to it exists, except that of the loan; that is also why decoder_traverse does not show it to
       gc.get_referents(). */
    int begun; /* opcode and RSV bits of the message; 0 if there is none */
    PyObject *message;
    Py_ssize_t size, checked, taken;
    Loan *loan;
    PyObject *view; /* the memoryview of the loan that get_buffer() returned */

    /* The frame whose payload is arriving. If nothing is left of it, it ends as soon as there is room for a message. */
    char in_payload, fin;
    Py_ssize_t left;
    uint8_t key[KEY_SIZE];
} Decoder;

/* What is left of a chunk, and what has come of it. */
typedef struct {
    const uint8_t *next, *end;
    Py_ssize_t room;
    PyObject *messages;
} Chunk;

static State *get_state(Decoder *self)
{
    return PyType_GetModuleState(Py_TYPE(self)); /* there are no subclasses */
}

static void reset_message(Decoder *self)
{
    self->begun = 0;
    Py_CLEAR(self->message);
    self->size = 0;
    self->checked = 0;
    self->taken = 0;
}

/* Decode nothing more, and let go of what there is. */
static void end(Decoder *self)
{
    self->ended = 1;
    self->in_payload = 0;
    self->pending = 0;
    Py_CLEAR(self->held);
    reset_message(self);
}

static int report(PyObject *callback, PyObject *error)
{
    PyObject *result = PyObject_CallOneArg(callback, error);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Record a violation; `error` is a new reference, or NULL with an exception. */
static int fail(Decoder *self, PyObject *error)
{
    if (!error) { return -1; }
    end(self);
    Py_SETREF(self->error, error);
    return self->on_error == Py_None ? 0 : report(self->on_error, error);
}

/* Return the exception that was raised, and clear it. */
static PyObject *catch(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *exception, *traceback;
    PyErr_Fetch(&type, &exception, &traceback);
    PyErr_NormalizeException(&type, &exception, &traceback);
    Py_DECREF(type);
    Py_XDECREF(traceback);
    return exception;
#endif
}

/* Turn the UnicodeDecodeError that was raised into a violation. What was decoded began `offset` bytes into the message.
   "When an endpoint is to interpret a byte stream as UTF-8 but finds that the byte stream is not, in fact, a valid
   UTF-8 stream, that endpoint MUST _Fail the WebSocket Connection_." (§8.1) */
static int fail_utf8(Decoder *self, Py_ssize_t offset)
{
    if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) { return -1; }
    PyObject *exception = catch();
    PyObject *error = PyObject_CallMethod(get_state(self)->rules, "not_utf8", "sOn", "text message", exception, offset);
    Py_DECREF(exception);
    return fail(self, error);
}

/* Return a message to the caller. The reference is stolen. */
static int deliver(Decoder *self, Chunk *chunk, PyObject *message)
{
    Py_ssize_t length = PyBytes_CheckExact(message) ? PyBytes_GET_SIZE(message) : PyUnicode_GET_LENGTH(message);
    int result = PyList_Append(chunk->messages, message);
    Py_DECREF(message);
    chunk->room -= length + MESSAGE_OVERHEAD;
    self->max_size = self->usual_max_size;
    self->messages++;
    return result;
}

/* Make a message of a payload that is there as a whole. */
static PyObject *make_message(const uint8_t *payload, Py_ssize_t length, const uint8_t *key, int is_text)
{
    if (!is_text) {
        PyObject *message = PyBytes_FromStringAndSize(key ? NULL : (const char *)payload, length);
        if (message && key) { mask((uint8_t *)PyBytes_AS_STRING(message), payload, length, key); }
        return message;
    }
    if (!key) { return PyUnicode_DecodeUTF8((const char *)payload, length, NULL); }
    PyObject *message = PyUnicode_New(length, 127);
    if (message && mask(PyUnicode_DATA(message), payload, length, key)) {
        /* It is not ASCII after all, and its memory no more than that: it has never been a str to anyone. */
        PyObject *text = PyUnicode_DecodeUTF8(PyUnicode_DATA(message), length, NULL);
        Py_SETREF(message, text);
    }
    return message;
}

/* Give the message this much memory. */
static int reserve(Decoder *self, Py_ssize_t capacity)
{
    if (self->message) { return _PyBytes_Resize(&self->message, capacity); }
    self->message = PyBytes_FromStringAndSize(NULL, capacity);
    return self->message ? 0 : -1;
}

/* Return the smaller of the two, without computing a double that does not fit. */
static Py_ssize_t double_up_to(Py_ssize_t size, Py_ssize_t most)
{
    return size < most - size ? 2 * size : most;
}

/* Have transform undo what was done to a message, then deliver it. The reference to the payload is stolen. */
static int deliver_transformed(Decoder *self, Chunk *chunk, int begun, PyObject *payload)
{
    PyObject *args[3] = {NULL, PyLong_FromLong(begun), payload};
    PyObject *result = NULL;
    if (args[1] && payload) {
        result = PyObject_Vectorcall(self->transform, args + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    Py_XDECREF(args[1]);
    Py_XDECREF(payload);
    if (!result) {
        return PyErr_ExceptionMatches(get_state(self)->violation) ? fail(self, catch()) : -1;
    }
    if (result == Py_None) {
        Py_DECREF(result);
        self->max_size = self->usual_max_size;
        chunk->room = 0;
        return 0;
    }
    if (!PyBytes_CheckExact(result)) {
        PyErr_Format(PyExc_TypeError, "transform must return bytes or None, not %.200s", Py_TYPE(result)->tp_name);
        Py_DECREF(result);
        return -1;
    }
    if (begun & TEXT) {
        PyObject *text = PyUnicode_DecodeUTF8(PyBytes_AS_STRING(result), PyBytes_GET_SIZE(result), NULL);
        Py_SETREF(result, text);
        if (!result) { return fail_utf8(self, 0); }
    }
    return deliver(self, chunk, result);
}

/* Return the payload that was assembled, cut to size, as the message itself. */
static PyObject *detach(Decoder *self)
{
    if ((!self->message || PyBytes_GET_SIZE(self->message) != self->size) && reserve(self, self->size) < 0) {
        return NULL;
    }
    PyObject *message = self->message;
    self->message = NULL;
    return message;
}

static int end_message(Decoder *self, Chunk *chunk)
{
    int begun = self->begun;
    PyObject *message;
    if (begun == TEXT) {
        const char *data = self->message ? PyBytes_AS_STRING(self->message) : "";
        message = PyUnicode_DecodeUTF8(data, self->size, NULL);
        if (!message) { return fail_utf8(self, self->taken); }
    }
    else {
        message = detach(self);
        if (!message) { return -1; }
    }
    reset_message(self);
    return begun & RSV ? deliver_transformed(self, chunk, begun, message) : deliver(self, chunk, message);
}

/* Take what has arrived of the message that has begun, of a text whole characters. */
static PyObject *take(Decoder *self)
{
    PyObject *part;
    if (self->begun == TEXT) {
        Py_ssize_t count = self->checked;
        char *data = self->message ? PyBytes_AS_STRING(self->message) : NULL;
        part = PyUnicode_DecodeUTF8(data ? data : "", count, NULL);
        if (!part) { return NULL; }
        if (count) { memmove(data, data + count, (size_t)(self->size - count)); }
        self->size -= count;
        self->taken += count;
    }
    else {
        part = detach(self);
        if (!part) { return NULL; }
        self->taken += self->size;
        self->size = 0;
    }
    self->checked = 0;
    return part;
}

/* Count bytes that have been put behind what had arrived of the message, and validate them if it is text. */
static int arrived(Decoder *self, Py_ssize_t count)
{
    uint8_t key[KEY_SIZE];
    self->size += count;
    self->left -= count;
    for (int i = 0; i < KEY_SIZE; i++) {
        key[i] = self->key[(i + count) & 3];
    }
    memcpy(self->key, key, KEY_SIZE);
    if (self->begun != TEXT || (!self->left && self->fin)) { return 0; }
    /* ASCII is passed over. What is decoded is dropped: in pieces, strings can take much more memory than the message.
       The end is left to end_message. */
    const char *data = PyBytes_AS_STRING(self->message);
    Py_ssize_t checked = self->checked;
    for (uint64_t word; self->size - checked >= 8; checked += 8) {
        memcpy(&word, data + checked, 8);
        if (word & 0x8080808080808080) { break; }
    }
    Py_ssize_t valid = 0;
    PyObject *text = PyUnicode_DecodeUTF8Stateful(data + checked, self->size - checked, NULL, &valid);
    if (!text) { return fail_utf8(self, self->taken + checked); }
    Py_DECREF(text);
    self->checked = checked + valid;
    return 0;
}

/* Move what the chunk has of the current payload to the message, and end the frame and the message if complete. */
static int take_payload(Decoder *self, Chunk *chunk)
{
    Py_ssize_t count = Py_MIN(self->left, chunk->end - chunk->next);
    if (count) {
        Py_ssize_t size = self->size + count;
        if (!self->message || size > PyBytes_GET_SIZE(self->message)) {
            /* At most twice what has arrived. If more fragments follow, an eighth to spare, as list and bytearray do:
               one byte at a time must not mean one copy at a time. */
            Py_ssize_t capacity = double_up_to(size, self->size + self->left);
            if (!self->fin && capacity - size < size >> 3) { capacity = size + (size >> 3); }
            if (reserve(self, capacity) < 0) { return -1; }
        }
        uint8_t *tail = (uint8_t *)PyBytes_AS_STRING(self->message) + self->size;
        if (self->is_client) {
            memcpy(tail, chunk->next, (size_t)count);
        }
        else {
            mask(tail, chunk->next, count, self->key);
        }
        chunk->next += count;
        if (arrived(self, count) < 0) { return -1; }
    }
    if (self->in_payload && !self->left) {
        self->in_payload = 0;
        if (self->fin) { return end_message(self, chunk); }
    }
    return 0;
}

/* Tell whether the first two bytes of a frame break a rule. frame_rules.check_head knows which, and quotes it. */
static int is_bad_head(Decoder *self, int first, int second)
{
    int opcode = first & 0xF;
    if (first & RSV || /* those that transform is for are not in it */ (second >= MASKED) == self->is_client) { return 1; }
    if (opcode >= CLOSE) { return opcode > PONG || (second & 0x7F) > 125 || first < FIN; }
    return opcode > BINARY || (opcode != CONTINUATION) == (self->begun != 0);
}

static int take_control(Decoder *self, int opcode, const uint8_t *payload, Py_ssize_t length, const uint8_t *key)
{
    PyObject *args[3] = {NULL, PyLong_FromLong(opcode), make_message(payload, length, key, 0)};
    PyObject *result = NULL;
    if (args[1] && args[2]) {
        result = PyObject_Vectorcall(self->on_control, args + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    Py_XDECREF(args[1]);
    Py_XDECREF(args[2]);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Tell whether a message is really too big that exceeds max_size: what an extension has transformed may be longer. */
static int is_too_big(Decoder *self, uint64_t size, int begun)
{
    if (!(begun & RSV)) { return 1; }
    PyObject *result = PyObject_CallMethod(get_state(self)->rules, "longest_transformed", "n", self->max_size);
    if (!result) { return -1; }
    Py_ssize_t longest = PyLong_AsSsize_t(result);
    Py_DECREF(result);
    if (longest == -1 && PyErr_Occurred()) { return -1; }
    return size > (uint64_t)longest;
}

/* A message is going to be too big: stop before the frame that says so, or fail. */
static int refuse_size(Decoder *self, Chunk *chunk, uint64_t size, int fin)
{
    PyObject *error = PyObject_CallMethod(get_state(self)->rules, "too_big", "Kni", (unsigned long long)size,
                                          self->max_size, fin);
    if (!error || self->on_too_big == Py_None) { return fail(self, error); }
    chunk->room = 0;
    int result = report(self->on_too_big, error);
    Py_DECREF(error);
    return result;
}

/* Decode the frame that the chunk begins with, and of a data frame as much as is there. If its header, or a control
   frame, is incomplete, chunk->next stays where it is. */
static int take_frame(Decoder *self, Chunk *chunk)
{
    const uint8_t *data = chunk->next;
    Py_ssize_t there = chunk->end - data;
    if (there < 2) { return 0; }
    int first = data[0];
    int second = data[1];
    int opcode = first & 0xF;
    int rsv = opcode == TEXT || opcode == BINARY ? first & self->rsv : 0;
    first ^= rsv;
    if (is_bad_head(self, first, second)) {
        return fail(self, PyObject_CallMethod(get_state(self)->rules, "check_head", "iiii", first, second,
                                              (int)self->is_client, (int)(self->begun != 0)));
    }

    Py_ssize_t start = 2;
    uint64_t length = (uint64_t)second & 0x7F;
    if (length >= 126) {
        int width = length == 126 ? 2 : 8;
        start += width;
        if (start > there) { return 0; }
        length = 0;
        for (int i = 0; i < width; i++) {
            length = length << 8 | data[2 + i];
        }
        /* "the minimal number of bytes MUST be used", "the most significant bit MUST be 0" (§5.2) */
        if (length < (width == 2 ? 126 : 0x10000) || length >> 63) {
            return fail(self, PyObject_CallMethod(get_state(self)->rules, "bad_length", "Ki",
                                                  (unsigned long long)length, 8 * width));
        }
    }

    char fin = first >= FIN;
    uint64_t size = (uint64_t)self->taken + (uint64_t)self->size + length;
    if (opcode < CLOSE && (self->max_size < 0 || size > (uint64_t)self->max_size)) {
        int excess = is_too_big(self, size, rsv | self->begun);
        if (excess < 0) { return -1; }
        if (excess) { return refuse_size(self, chunk, size, fin); }
    }

    const uint8_t *key = NULL;
    if (!self->is_client) {
        start += KEY_SIZE;
        if (start > there) { return 0; }
        key = data + start - KEY_SIZE;
    }

    const uint8_t *payload = data + start;
    int whole = length <= (uint64_t)(there - start);
    if (opcode >= CLOSE) {
        if (!whole) { return 0; }
        chunk->next = payload + length;
        if (opcode == CLOSE) {
            /* "After receiving a control frame indicating the connection should be closed, a peer discards any further
               data received." (§1.4) */
            self->closed = 1;
            end(self);
        }
        return take_control(self, opcode, payload, (Py_ssize_t)length, key);
    }
    if (whole && fin && opcode != CONTINUATION) {
        chunk->next = payload + length;
        PyObject *message = make_message(payload, (Py_ssize_t)length, key, opcode == TEXT && !rsv);
        if (rsv) { return deliver_transformed(self, chunk, opcode | rsv, message); }
        return message ? deliver(self, chunk, message) : fail_utf8(self, 0);
    }

    if (opcode != CONTINUATION) {
        self->begun = opcode | rsv;
    }
    if (!fin) { self->fragments++; }
    self->in_payload = 1;
    self->fin = fin;
    self->left = (Py_ssize_t)length;
    if (key) { memcpy(self->key, key, KEY_SIZE); }
    chunk->next = payload;
    return take_payload(self, chunk);
}

static int take_chunk(Decoder *self, Chunk *chunk)
{
    if (self->in_payload && chunk->room > 0 && take_payload(self, chunk) < 0) { return -1; }
    while (chunk->room > 0 && !self->ended && chunk->next < chunk->end) {
        const uint8_t *before = chunk->next;
        if (take_frame(self, chunk) < 0) { return -1; }
        if (chunk->next == before) { break; }
    }
    return 0;
}

/* Find the bytes to decode: what was held back, then `data`. Returns the bytes object that they are in, or None if they
   are in a buffer that the caller will want back. */
static PyObject *open_chunk(Decoder *self, const Bytes *data, Chunk *chunk)
{
    PyObject *owner = self->held;
    if (!owner) {
        chunk->next = data->data;
        chunk->end = data->data + data->size;
        return Py_NewRef(data->owner ? data->owner : Py_None);
    }
    Py_ssize_t offset = self->offset;
    self->held = NULL;
    if (data->size) {
        Py_ssize_t rest = PyBytes_GET_SIZE(owner) - offset;
        PyObject *joined = new_bytes(rest, data->size);
        if (joined) {
            memcpy(PyBytes_AS_STRING(joined), PyBytes_AS_STRING(owner) + offset, (size_t)rest);
            memcpy(PyBytes_AS_STRING(joined) + rest, data->data, (size_t)data->size);
        }
        Py_SETREF(owner, joined);
        if (!owner) { return NULL; }
        offset = 0;
    }
    chunk->next = (const uint8_t *)PyBytes_AS_STRING(owner) + offset;
    chunk->end = (const uint8_t *)PyBytes_AS_STRING(owner) + PyBytes_GET_SIZE(owner);
    return owner;
}

/* Hold back what is left of a chunk. The beginning of a frame must not keep its whole chunk in memory. */
static int hold(Decoder *self, const Chunk *chunk, PyObject *owner)
{
    Py_ssize_t rest = chunk->end - chunk->next;
    self->pending = chunk->room <= 0 && (rest || (self->in_payload && !self->left));
    if (!rest) { return 0; }
    if (chunk->room > 0 || owner == Py_None) {
        self->held = PyBytes_FromStringAndSize((const char *)chunk->next, rest);
        self->offset = 0;
        return self->held ? 0 : -1;
    }
    self->held = Py_NewRef(owner);
    self->offset = (const char *)chunk->next - PyBytes_AS_STRING(owner);
    return 0;
}

static PyObject *decode(Decoder *self, const Bytes *data, Py_ssize_t room)
{
    Chunk chunk = {.room = room, .messages = PyList_New(0)};
    self->room = room;
    self->fed += data->size;
    if (!chunk.messages || self->ended) { return chunk.messages; }
    PyObject *owner = open_chunk(self, data, &chunk);
    int result = owner ? take_chunk(self, &chunk) : -1;
    if (result == 0 && !self->ended) { result = hold(self, &chunk, owner); }
    Py_XDECREF(owner);
    self->room = chunk.room;
    if (result < 0) {
        end(self);
        Py_CLEAR(chunk.messages);
    }
    return chunk.messages;
}

/* Take the lent memory back, or raise BufferError if there are views of it beside the one that get_buffer returned. */
static int repay(Decoder *self)
{
    if (!self->loan) { return 0; }
    if (self->view) {
        PyObject *result = PyObject_CallMethod(self->view, "release", NULL);
        if (!result) { return -1; }
        Py_DECREF(result);
        Py_CLEAR(self->view);
    }
    int result = -1;
    Py_BEGIN_CRITICAL_SECTION(self->loan);
    if (!self->loan->exports) {
        Py_CLEAR(self->loan->memory);
        result = 0;
    }
    Py_END_CRITICAL_SECTION();
    if (result < 0) {
        PyErr_SetString(PyExc_BufferError, "slices of the memory that get_buffer() lent still exist");
        return -1;
    }
    Py_CLEAR(self->loan);
    return 0;
}

static PyObject *lend(Decoder *self)
{
    if (self->view) { return Py_NewRef(self->view); }
    if (!self->in_payload || self->left < LEND_FROM || self->pending) { return Py_NewRef(self->scratch); }
    if (!self->loan) {
        Py_ssize_t capacity = self->message ? PyBytes_GET_SIZE(self->message) : 0;
        if (capacity - self->size < LEND_FROM) {
            /* Twice what has arrived, whatever the header announced. */
            Py_ssize_t total = self->size + self->left;
            capacity = Py_MIN(total, Py_MAX(double_up_to(self->size, total), FIRST_RESERVE));
            if (reserve(self, capacity) < 0) {
                end(self);
                return NULL;
            }
        }
        PyTypeObject *type = get_state(self)->loan_type;
        Loan *loan = (Loan *)type->tp_alloc(type, 0);
        if (!loan) { return NULL; }
        loan->memory = Py_NewRef(self->message);
        loan->start = self->size;
        loan->size = Py_MIN(capacity - self->size, self->left);
        self->loan = loan;
    }
    self->view = PyMemoryView_FromObject((PyObject *)self->loan);
    return Py_XNewRef(self->view);
}

static PyObject *refuse_count(Py_ssize_t count, Py_ssize_t most)
{
    return PyErr_Format(PyExc_ValueError, "filled(%zd), but get_buffer() has lent %zd bytes", count, most);
}

static PyObject *decode_scratch(Decoder *self, Py_ssize_t count, Py_ssize_t room)
{
    Bytes data = {.owner = NULL};
    PyObject *messages;
    if (self->scratch == Py_None) { return refuse_count(count, 0); }
    if (PyObject_GetBuffer(self->scratch, &data.view, PyBUF_SIMPLE) < 0) { return NULL; }
    if (count < 0 || count > data.view.len) {
        messages = refuse_count(count, data.view.len);
    }
    else {
        data.data = data.view.buf;
        data.size = count;
        messages = decode(self, &data, room);
    }
    PyBuffer_Release(&data.view);
    return messages;
}

static PyObject *decode_lent(Decoder *self, Py_ssize_t count, Py_ssize_t room)
{
    if (!self->loan) { return decode_scratch(self, count, room); }
    if (count < 0 || count > self->loan->size) { return refuse_count(count, self->loan->size); }
    if (repay(self) < 0) { return NULL; }
    self->fed += count;
    if (!self->is_client) {
        uint8_t *start = (uint8_t *)PyBytes_AS_STRING(self->message) + self->size;
        mask(start, start, count, self->key);
    }
    if (arrived(self, count) < 0) {
        end(self);
        return NULL;
    }
    Bytes nothing = {.data = (const uint8_t *)""};
    return decode(self, &nothing, room);
}


/* The type */

static int enter(Decoder *self)
{
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "the decoder is at work: on_control must not call it, nor two threads");
        return -1;
    }
    self->busy = 1;
    return 0;
}

/* A number, cut to what fits; without one there is no limit. */
static int take_size(PyObject *object, Py_ssize_t *size)
{
    *size = object ? PyNumber_AsSsize_t(object, NULL) : PY_SSIZE_T_MAX;
    return *size == -1 && PyErr_Occurred() ? -1 : 0;
}

static PyObject *decoder_feed(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    PyObject *messages = NULL;
    Py_ssize_t room;
    Bytes data;
    if (check_count(count, 1, 2) < 0 || take_size(count > 1 ? args[1] : NULL, &room) < 0 ||
        open_bytes(&data, args[0], 0) < 0) {
        return NULL;
    }
    Py_BEGIN_CRITICAL_SECTION(op);
    if (enter((Decoder *)op) == 0) {
        messages = repay((Decoder *)op) < 0 ? NULL : decode((Decoder *)op, &data, room);
        ((Decoder *)op)->busy = 0;
    }
    Py_END_CRITICAL_SECTION();
    close_bytes(&data);
    return messages;
}

static PyObject *decoder_filled(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    PyObject *messages = NULL;
    Py_ssize_t size, room;
    if (check_count(count, 1, 2) < 0 || take_size(args[0], &size) < 0 ||
        take_size(count > 1 ? args[1] : NULL, &room) < 0) {
        return NULL;
    }
    Py_BEGIN_CRITICAL_SECTION(op);
    if (enter((Decoder *)op) == 0) {
        messages = decode_lent((Decoder *)op, size, room);
        ((Decoder *)op)->busy = 0;
    }
    Py_END_CRITICAL_SECTION();
    return messages;
}

static PyObject *decoder_get_buffer(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    PyObject *view = NULL;
    Py_BEGIN_CRITICAL_SECTION(op);
    if (enter((Decoder *)op) == 0) {
        view = lend((Decoder *)op);
        ((Decoder *)op)->busy = 0;
    }
    Py_END_CRITICAL_SECTION();
    return view;
}

static PyObject *decoder_take(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    PyObject *part = NULL;
    Py_BEGIN_CRITICAL_SECTION(op);
    if (enter((Decoder *)op) == 0) {
        part = repay((Decoder *)op) < 0 ? NULL : take((Decoder *)op);
        ((Decoder *)op)->busy = 0;
    }
    Py_END_CRITICAL_SECTION();
    return part;
}

/* Not in tp_init, which could be called again while the decoder is at work. */
static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"is_client", "max_size", "on_control", "on_error", "on_too_big",
                            "rsv",       "transform", "scratch",   NULL};
    int is_client = -1, rsv = 0;
    PyObject *max_size = NULL, *on_control = NULL, *on_error = Py_None, *on_too_big = Py_None, *transform = Py_None,
             *scratch = Py_None;
    Py_ssize_t most;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$pOOOOiOO:Decoder", names, &is_client, &max_size, &on_control,
                                     &on_error, &on_too_big, &rsv, &transform, &scratch)) {
        return NULL;
    }
    if (is_client < 0 || !max_size || !on_control) { /* the format cannot say which are optional */
        PyErr_SetString(PyExc_TypeError, "Decoder() expects is_client, max_size and on_control");
        return NULL;
    }
    if (take_size(max_size == Py_None ? NULL : max_size, &most) < 0) { return NULL; }
    Decoder *self = (Decoder *)type->tp_alloc(type, 0);
    if (self) {
        self->is_client = (char)is_client;
        self->usual_max_size = self->max_size = most;
        self->on_control = Py_NewRef(on_control);
        self->on_error = Py_NewRef(on_error);
        self->on_too_big = Py_NewRef(on_too_big);
        self->rsv = rsv & RSV;
        self->transform = Py_NewRef(transform);
        self->scratch = Py_NewRef(scratch);
        self->room = PY_SSIZE_T_MAX;
        self->error = Py_NewRef(Py_None);
    }
    return (PyObject *)self;
}

static int decoder_traverse(PyObject *op, visitproc visit, void *arg)
{
    Decoder *self = (Decoder *)op;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->on_control);
    Py_VISIT(self->on_error);
    Py_VISIT(self->on_too_big);
    Py_VISIT(self->transform);
    Py_VISIT(self->scratch);
    Py_VISIT(self->error);
    Py_VISIT(self->view);
    return 0;
}

static int decoder_clear(PyObject *op)
{
    Decoder *self = (Decoder *)op;
    end(self);
    Py_CLEAR(self->on_control);
    Py_CLEAR(self->on_error);
    Py_CLEAR(self->on_too_big);
    Py_CLEAR(self->transform);
    Py_SETREF(self->scratch, Py_NewRef(Py_None)); /* never NULL: a finaliser may still call the decoder */
    Py_CLEAR(self->error);
    Py_CLEAR(self->view);
    Py_CLEAR(self->loan);
    return 0;
}

static void decoder_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    decoder_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef decoder_methods[] = {
    {"feed", FASTCALL(decoder_feed),
     PyDoc_STR("feed($self, data, room=sys.maxsize, /)\n--\n\nDecode what has arrived.")},
    {"filled", FASTCALL(decoder_filled),
     PyDoc_STR("filled($self, count, room=sys.maxsize, /)\n--\n\n"
               "Decode what has arrived in the memory that get_buffer returned.")},
    {"get_buffer", decoder_get_buffer, METH_NOARGS,
     PyDoc_STR("get_buffer($self, /)\n--\n\n"
               "Return where the next bytes belong: in the message itself for a large payload.")},
    {"take", decoder_take, METH_NOARGS,
     PyDoc_STR("take($self, /)\n--\n\nTake what has arrived of the message that has begun and not ended.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef decoder_members[] = {
    {"room", Py_T_PYSSIZET, offsetof(Decoder, room), Py_READONLY, NULL},
    {"pending", Py_T_BOOL, offsetof(Decoder, pending), Py_READONLY, NULL},
    {"error", Py_T_OBJECT_EX, offsetof(Decoder, error), Py_READONLY, NULL},
    {"closed", Py_T_BOOL, offsetof(Decoder, closed), Py_READONLY, NULL},
    {"fed", Py_T_PYSSIZET, offsetof(Decoder, fed), Py_READONLY, NULL},
    {"messages", Py_T_PYSSIZET, offsetof(Decoder, messages), Py_READONLY, NULL},
    {"fragments", Py_T_PYSSIZET, offsetof(Decoder, fragments), Py_READONLY, NULL},
    {"max_size", Py_T_PYSSIZET, offsetof(Decoder, max_size), 0, NULL},
    {"begun", Py_T_INT, offsetof(Decoder, begun), Py_READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot decoder_slots[] = {
    {Py_tp_doc, "Decoder(*, is_client, max_size, on_control, on_error=None, on_too_big=None, rsv=0, transform=None, "
                "scratch=None)\n--\n\n"
                "The receiving half of a connection: bytes to messages."},
    {Py_tp_new, decoder_new},
    {Py_tp_traverse, decoder_traverse},
    {Py_tp_clear, decoder_clear},
    {Py_tp_dealloc, decoder_dealloc},
    {Py_tp_methods, decoder_methods},
    {Py_tp_members, decoder_members},
    {0, NULL},
};

static PyType_Spec decoder_spec = {
    .name = "anyio_ws.protocol._codec.Decoder",
    .basicsize = sizeof(Decoder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = decoder_slots,
};


/* The module */

static int add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int result = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return result;
}

static int codec_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->rules = PyImport_ImportModule("anyio_ws.protocol.frame_rules");
    state->loan_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &loan_spec, NULL);
    state->violation = state->rules ? PyObject_GetAttrString(state->rules, "ProtocolError") : NULL;
    if (!state->violation || !state->loan_type) { return -1; }
    return add_type(module, &keys_spec) < 0 || add_type(module, &decoder_spec) < 0 ? -1 : 0;
}

static int codec_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->rules);
    Py_VISIT(state->violation);
    Py_VISIT(state->loan_type);
    return 0;
}

static int codec_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->rules);
    Py_CLEAR(state->violation);
    Py_CLEAR(state->loan_type);
    return 0;
}

static void codec_free(void *module)
{
    codec_clear((PyObject *)module);
}

static PyMethodDef codec_functions[] = {
    {"apply_mask", FASTCALL(apply_mask),
     PyDoc_STR("apply_mask($module, data, key, /)\n--\n\nMask a payload, or unmask it.")},
    {"encode_frame", FASTCALL(encode_frame),
     PyDoc_STR("encode_frame($module, opcode, payload, key=None, fin=True, /)\n--\n\nEncode a frame.")},
    {"encode_header", FASTCALL(encode_header),
     PyDoc_STR("encode_header($module, opcode, length, key=None, fin=True, /)\n--\n\n"
               "Encode everything of a frame that precedes its payload.")},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot codec_slots[] = {
    {Py_mod_exec, codec_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef codec_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_codec",
    .m_doc = "The frame codec in C; the interface is that of _pycodec.py.",
    .m_size = sizeof(State),
    .m_methods = codec_functions,
    .m_slots = codec_slots,
    .m_traverse = codec_traverse,
    .m_clear = codec_clear,
    .m_free = codec_free,
};

PyMODINIT_FUNC PyInit__codec(void)
{
    return PyModuleDef_Init(&codec_module);
}
