package boltstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
)

// The parts of bolt's file format (version 2) that tell a sound file from
// another one. Numbers are in the byte order of the machine.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeaderLen = 16 // id 8, flags 2, count 2, overflow 4
	elementLen    = 16 // in branches: pos 4, key size 4, page 8; in leaves: flags 4, pos 4, key size 4, value size 4
	bucketLen     = 16 // root page 8, sequence 8; an inline page follows when the root is 0
	metaLen       = 64 // magic 4, version 4, page size 4, flags 4, root bucket 16, free list 8, pages 8, transaction 8, checksum 8

	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageFreelist = 0x10

	elementBucket = 0x01 // flag of a leaf element
)

// wholeWalkPages is up to how many pages every page of a file is looked at
// before bolt opens it. Of larger files it is the branches, whose number is
// less than a hundredth.
const wholeWalkPages = 4096

// notThere says that there is no file at a path; it is an fs.ErrNotExist.
type notThere struct {
	path   string
	isLink bool // to a file that is not there
}

func noFile(path string) notThere {
	info, err := os.Lstat(path)
	return notThere{whole(path), err == nil && info.Mode()&fs.ModeSymlink != 0}
}

func (n notThere) Error() string {
	if n.isLink {
		return n.path + " is a link to a file that is not there: mount the disk that it leads to, correct the link, or remove it"
	}
	return fmt.Sprintf("there is no token store at %s: correct tokenstore.path, or make a store with `tokenward init --config F`", n.path)
}

func (notThere) Unwrap() error { return fs.ErrNotExist }

// openSound opens the file at path, and fails unless bolt can work on it: bolt
// makes a store of an empty file, panics at some damages and dies of others,
// such as a page that is its own descendant. It reads only.
func openSound(path string, flag int, mode fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, mode) //nolint:gosec // the operator named it; a pipe would be waited for
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, noFile(path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s cannot be read and written by this user: run as its owner, or change the owner with `chown`: %w", path, fs.ErrPermission)
	case errors.Is(err, syscall.EROFS):
		return nil, readOnlyError(path)
	case errors.Is(err, syscall.ELOOP):
		return nil, fmt.Errorf("%s is a link that leads to no file, but back to itself: correct the link, or tokenstore.path: %w", path, syscall.ELOOP)
	case errors.Is(err, syscall.EISDIR):
		return nil, notRegular(path, fs.ModeDir)
	case err != nil:
		return nil, err
	}
	if err := inspect(f, path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// whole is path from the root on: a program that was started in another folder
// than usual finds nothing at a relative path.
func whole(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return abs
}

func readOnlyError(path string) error {
	return fmt.Errorf("%s lies on a file system that is mounted read-only: mount it for writing, or name another place in tokenstore.path: %w", whole(path), syscall.EROFS)
}

func notRegular(path string, mode fs.FileMode) error {
	kind := "no regular file"
	if mode.IsDir() {
		kind = "a directory"
	}
	return fmt.Errorf("%s is %s: correct tokenstore.path, which names the file of the store", path, kind)
}

// inspect checks the file's header and as much of its pages as can be read at
// once.
func inspect(f *os.File, path string) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return notRegular(path, info.Mode())
	}
	if info.Size() == 0 {
		return fmt.Errorf("%s is empty, not a token store: if nothing else needs it remove it, then run `tokenward init --config F`", path)
	}
	h, err := readHeader(f, path)
	if err != nil {
		return err
	}
	if need := h.pages * h.pageSize; need > uint64(info.Size()) { //nolint:gosec // not negative
		return damaged(path, fmt.Sprintf("it has %d bytes, and %d when it was written: the rest was cut off", info.Size(), need))
	}
	w := walker{f: f, header: h, leaves: h.pages <= wholeWalkPages, seen: map[uint64]bool{}}
	if err := w.freelist(); err != nil {
		return damaged(path, err.Error())
	}
	if err := w.tree(h.root); err != nil {
		return damaged(path, err.Error())
	}
	for _, id := range w.free {
		if w.seen[id] {
			return damaged(path, "a page is both in use and free")
		}
	}
	return nil
}

// header is what bolt's meta pages say.
type header struct {
	pageSize, root, freelist, pages, txid uint64
}

// readHeader finds the valid one of the two meta pages, or the newer if both
// are.
func readHeader(f *os.File, path string) (header, error) {
	var best *header
	bolt := false
	// The second page begins where the first ends, whose size only it says.
	offsets := []int64{0}
	for size := int64(1 << 10); size <= 1<<24; size <<= 1 {
		offsets = append(offsets, size)
	}
	var buf [pageHeaderLen + metaLen]byte
	for _, off := range offsets {
		if _, err := f.ReadAt(buf[:], off); err != nil {
			continue // beyond the end
		}
		h, magic, ok := parseMeta(buf[pageHeaderLen:])
		bolt = bolt || magic && off == 0
		if !ok || off != 0 && uint64(off) != h.pageSize { //nolint:gosec // a positive constant
			continue
		}
		if best == nil || h.txid > best.txid {
			best = &h
		}
	}
	switch {
	case best != nil:
		return *best, nil
	case bolt:
		return header{}, damaged(path, "both of its headers are")
	}
	return header{}, fmt.Errorf("%s is not a token store: correct tokenstore.path, or make a store elsewhere with `tokenward init --config F`", path)
}

func parseMeta(b []byte) (h header, magic, ok bool) {
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	magic = u32(b) == boltMagic
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaLen-8])
	h = header{pageSize: uint64(u32(b[8:])), root: u64(b[16:]), freelist: u64(b[32:]), pages: u64(b[40:]), txid: u64(b[48:])}
	ok = magic && u32(b[4:]) == boltVersion && u64(b[56:]) == sum.Sum64() &&
		h.pageSize >= 1<<10 && h.pageSize <= 1<<24 && h.pageSize&(h.pageSize-1) == 0 &&
		h.pages >= 4 && h.pages < 1<<39
	return h, magic, ok
}

// walker visits the pages of a file that bolt would visit.
type walker struct {
	f      *os.File
	header header
	leaves bool            // look at every leaf, not only at those that hold buckets
	seen   map[uint64]bool // pages visited: none may be met twice
	free   []uint64        // what the list of free pages holds
}

var errPage = errors.New("a page in it is malformed")

// page reads a page with its overflow.
func (w *walker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= w.header.pages || w.seen[id] {
		return nil, errPage
	}
	w.seen[id] = true
	b := make([]byte, w.header.pageSize)
	at := int64(id * w.header.pageSize) //nolint:gosec // bounded by the file's size
	if _, err := w.f.ReadAt(b, at); err != nil {
		return nil, err
	}
	overflow := uint64(binary.NativeEndian.Uint32(b[12:]))
	if binary.NativeEndian.Uint64(b) != id || overflow >= w.header.pages-id {
		return nil, errPage
	}
	for i := uint64(1); i <= overflow; i++ {
		if w.seen[id+i] {
			return nil, errPage
		}
		w.seen[id+i] = true
	}
	if overflow > 0 {
		b = make([]byte, (1+overflow)*w.header.pageSize)
		if _, err := w.f.ReadAt(b, at); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func pageFlags(p []byte) uint16 { return binary.NativeEndian.Uint16(p[8:]) }
func pageCount(p []byte) int    { return int(binary.NativeEndian.Uint16(p[10:])) }

// freelist checks the list of free pages, from which bolt takes what it
// overwrites.
func (w *walker) freelist() error {
	if w.header.freelist == ^uint64(0) {
		return nil // not kept: bolt looks for free pages itself
	}
	p, err := w.page(w.header.freelist)
	if err != nil {
		return err
	}
	n, at := uint64(pageCount(p)), pageHeaderLen //nolint:gosec // two bytes
	if n == 0xFFFF {                             // too many for the header: the first item is the number
		n, at = binary.NativeEndian.Uint64(p[at:]), at+8
	}
	if pageFlags(p) != pageFreelist || n > uint64(len(p)-at)/8 { //nolint:gosec // a page is longer
		return errPage
	}
	last := uint64(1)
	for range n {
		id := binary.NativeEndian.Uint64(p[at:])
		w.free = append(w.free, id)
		if id <= last || id >= w.header.pages {
			return errors.New("its list of free pages is malformed")
		}
		last, at = id, at+8
	}
	return nil
}

// tree checks the bucket whose root is the page id.
func (w *walker) tree(id uint64) error {
	depth, err := w.depth(id)
	if err != nil {
		return err
	}
	return w.subtree(id, depth)
}

// depth follows the first children: all leaves of a tree are as deep.
func (w *walker) depth(id uint64) (int, error) {
	scout := walker{f: w.f, header: w.header, seen: map[uint64]bool{}}
	for depth := 0; ; depth++ {
		p, err := scout.page(id)
		if err != nil {
			return 0, err
		}
		if pageFlags(p) != pageBranch {
			return depth, nil
		}
		if pageCount(p) == 0 {
			return 0, errPage
		}
		id = binary.NativeEndian.Uint64(p[pageHeaderLen+8:])
	}
}

func (w *walker) subtree(id uint64, depth int) error {
	// The root bucket's tree holds the buckets, so its leaves are always read.
	p, err := w.page(id)
	if err != nil {
		return err
	}
	if depth == 0 {
		return w.leaf(p)
	}
	if pageFlags(p) != pageBranch || pageCount(p) == 0 {
		return errPage
	}
	for i := range pageCount(p) {
		e := pageHeaderLen + i*elementLen
		if e+elementLen > len(p) {
			return errPage
		}
		pos, size := at32(p, e), at32(p, e+4)
		if uint64(e)+pos+size > uint64(len(p)) { //nolint:gosec // not negative
			return errPage
		}
		child := binary.NativeEndian.Uint64(p[e+8:])
		if depth == 1 && !w.leaves && id != w.header.root {
			if child < 2 || child >= w.header.pages || w.seen[child] {
				return errPage
			}
			continue
		}
		if err := w.subtree(child, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks a leaf page, inline ones too, and the buckets in it.
func (w *walker) leaf(p []byte) error {
	if len(p) < pageHeaderLen || pageFlags(p) != pageLeaf {
		return errPage
	}
	for i := range pageCount(p) {
		e := pageHeaderLen + i*elementLen
		if e+elementLen > len(p) {
			return errPage
		}
		flags, pos, ksize, vsize := at32(p, e), at32(p, e+4), at32(p, e+8), at32(p, e+12)
		end := uint64(e) + pos + ksize + vsize //nolint:gosec // not negative
		if end > uint64(len(p)) || ksize == 0 {
			return errPage
		}
		if flags&elementBucket == 0 {
			continue
		}
		bucket := p[end-vsize : end]
		if len(bucket) < bucketLen {
			return errPage
		}
		var err error
		if root := binary.NativeEndian.Uint64(bucket); root != 0 {
			err = w.tree(root)
		} else {
			err = w.leaf(bucket[bucketLen:])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func at32(p []byte, at int) uint64 { return uint64(binary.NativeEndian.Uint32(p[at:])) }

// recovering makes an error of a panic, and of a fault in the mapped file, in
// the function that defers what it returns: `defer recovering(path, &err)()`.
// bolt asserts its file format by panicking, and follows offsets in a damaged
// page wherever they lead.
func recovering(path string, err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			*err = damaged(path, fmt.Sprint(p))
		}
	}
}
