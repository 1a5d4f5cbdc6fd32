package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"causeway/internal/cause"
	"causeway/internal/durable"
	"causeway/protocol"
)

// Store is a state directory, held by this process alone until Close.
type Store struct {
	dir  string
	lock *os.File
	made bool

	mended []*durable.Damage
}

// Create opens dir as Open does and makes it (0700) if it is missing.
func Create(dir string) (*Store, error) {
	made := false
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, unusable(dir, err)
	}
	switch err := os.Mkdir(dir, 0o700); {
	case err == nil:
		made = true
	case !errors.Is(err, fs.ErrExist):
		return nil, unusable(dir, err)
	}
	s, err := Open(dir)
	if err != nil {
		return nil, err
	}
	s.made = made
	return s, nil
}

// Open takes the state directory dir. It fails with ErrNotJoined if there is
// none and with ErrLocked if another process has it. The lock is on the
// directory itself, so that there is no file to be left behind.
func Open(dir string) (*Store, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s; run 'causeway-agent join TOKEN' first", ErrNotJoined, dir)
	}
	if err != nil {
		return nil, unusable(dir, err)
	}
	if st, err := f.Stat(); err != nil || !st.IsDir() {
		f.Close()
		return nil, fmt.Errorf("state directory %s is not a directory; move it away or choose another with --state-dir", dir)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s; stop it first, or choose another with --state-dir", ErrLocked, dir)
		}
		return nil, fmt.Errorf("lock state directory %s: %w", dir, err)
	}
	return &Store{dir: dir, lock: f}, nil
}

func unusable(dir string, err error) error {
	return fmt.Errorf("state directory %s cannot be used: %w; run as root or choose another with --state-dir", dir, bare(err))
}

// bare strips the operation and path that os puts before an error, where the
// message names the path already.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Dir is the directory's path.
func (s *Store) Dir() string { return s.dir }

// Made reports whether Create made the directory.
func (s *Store) Made() bool { return s.made }

// Close gives the directory to others.
func (s *Store) Close() error { return s.lock.Close() }

// Identity reads the node's identity. It fails with ErrNotJoined if there is
// none.
func (s *Store) Identity() (Identity, error) {
	return s.identity(func(f durable.Side, v any, check func() error) error { return s.load(f, v, check) })
}

func (s *Store) identity(load func(durable.Side, any, func() error) error) (id Identity, err error) {
	var f fileIdentity
	err = load(s.side(identityFile), &f, func() (err error) { id, err = f.identity(); return err })
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("%w: %s holds no identity; run 'causeway-agent join TOKEN' first", ErrNotJoined, s.dir)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("read %w; %s", err, cause.Cure(err, "join again with 'causeway-agent join --replace TOKEN'"))
	}
	return id, nil
}

func (f fileIdentity) identity() (id Identity, err error) {
	id = Identity{Number: f.Number, Name: f.Name, Site: f.Site, Overlay: f.Overlay, KeyEpoch: f.KeyEpoch, KeyMade: f.KeyMade, HubList: f.HubList, HubListConfirmed: f.ListTime, Granted: f.Granted, Mark: f.Mark, MadeDir: f.MadeDir, Shields: f.Shields, Joined: f.Joined}
	if f.Version != fileVersion {
		return Identity{}, fmt.Errorf("version %d is not %d, which this build reads", f.Version, fileVersion)
	}
	if id.WireGuardKey, err = protocol.ParseWireGuardPrivateKey(f.WireGuardKey); err != nil {
		return Identity{}, err
	}
	if id.IdentityKey, err = protocol.ParseIdentityPrivateKey(f.IdentityKey); err != nil {
		return Identity{}, err
	}
	if f.Next != nil {
		id.Next = &NextKey{Made: f.Next.Made, Overlap: f.Next.Overlap}
		if id.Next.Key, err = protocol.ParseWireGuardPrivateKey(f.Next.WireGuardKey); err != nil {
			return Identity{}, err
		}
	}
	if f.Old != nil {
		id.OldUntil = f.Old.Until
		if id.Old, err = protocol.ParseWireGuardPrivateKey(f.Old.WireGuardKey); err != nil {
			return Identity{}, err
		}
	}
	if len(f.Pin) != len(id.Pin) {
		return Identity{}, errors.New("pin has the wrong length")
	}
	copy(id.Pin[:], f.Pin)
	if !f.Number.Valid() || !protocol.ValidName(f.Name) || !protocol.ValidName(f.Site) || len(f.Overlay) == 0 {
		return Identity{}, errors.New("number, name, site or overlay address is missing or wrong")
	}
	return id, nil
}

// SaveIdentity stores the identity, durable when it returns.
func (s *Store) SaveIdentity(id Identity) error {
	var next *fileNext
	if id.Next != nil {
		next = &fileNext{id.Next.Key.Secret(), id.Next.Made, id.Next.Overlap}
	}
	var old *fileOld
	if !id.Old.IsZero() {
		old = &fileOld{id.Old.Secret(), id.OldUntil}
	}
	return s.write(identityFile, fileIdentity{
		KeyMade: id.KeyMade, Next: next, Old: old,
		Version: fileVersion, Number: id.Number, Name: id.Name, Site: id.Site, Overlay: id.Overlay,
		WireGuardKey: id.WireGuardKey.Secret(), IdentityKey: id.IdentityKey.Secret(), KeyEpoch: id.KeyEpoch,
		Pin: id.Pin[:], HubList: id.HubList, ListTime: id.HubListConfirmed, Granted: id.Granted, Mark: id.Mark, MadeDir: id.MadeDir, Shields: id.Shields, Joined: id.Joined,
	})
}

// Pending reads the join under way; ok is false if there is none. A file that
// does not read is none: it can be of no use to a retry.
func (s *Store) Pending() (p Pending, ok bool) {
	var f filePending
	if err := s.side(pendingFile).Peek(&f, nil); err != nil || f.Version != fileVersion {
		return Pending{}, false
	}
	var err1, err2 error
	p.TokenID, p.MadeDir = f.TokenID, f.MadeDir
	p.WireGuardKey, err1 = protocol.ParseWireGuardPrivateKey(f.WireGuardKey)
	p.IdentityKey, err2 = protocol.ParseIdentityPrivateKey(f.IdentityKey)
	return p, err1 == nil && err2 == nil
}

// SavePending stores the join under way, durable when it returns.
func (s *Store) SavePending(p Pending) error {
	return s.write(pendingFile, filePending{fileVersion, p.TokenID, p.WireGuardKey.Secret(), p.IdentityKey.Secret(), p.MadeDir})
}

// RemovePending forgets the join under way.
func (s *Store) RemovePending() error { return s.remove(pendingFile) }

// Netmap reads the last netmap; nil if there is none. After an error there was
// one that is lost: it is set aside.
func (s *Store) Netmap() (*StoredNetmap, error) {
	var n StoredNetmap
	if err := s.loadOrAside(s.side(netmapFile), &n); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &n, nil
}

// SaveNetmap stores the last netmap.
func (s *Store) SaveNetmap(n StoredNetmap) error { return s.write(netmapFile, n) }

// Pins reads the peers' pinned keys. After an error it is not known which there were: the
// file stays where it is, so that this is so until somebody restores or removes it.
func (s *Store) Pins() (map[protocol.NodeNumber]Pin, error) {
	p := map[protocol.NodeNumber]Pin{}
	if err := s.load(s.side(pinsFile), &p, nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	delete(p, 0) // a checksum that an older version wrote back
	return p, nil
}

// PinsFile is where the pins are kept.
func (s *Store) PinsFile() string { return filepath.Join(s.dir, pinsFile) }

// SavePins stores the peers' pinned keys.
func (s *Store) SavePins(p map[protocol.NodeNumber]Pin) error { return s.write(pinsFile, p) }

// Port reads the UDP port of the last run; 0 if it is not known.
func (s *Store) Port() (uint16, error) {
	var p struct {
		UDP uint16 `json:"udp"`
	}
	if err := s.loadOrAside(s.side(portFile), &p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return p.UDP, nil
}

// SavePort stores the UDP port of this run.
func (s *Store) SavePort(port uint16) error {
	return s.write(portFile, struct {
		UDP uint16 `json:"udp"`
	}{port})
}

// maxNames bounds what Addrs reads back.
const maxNames = 64

// Addrs reads at which addresses hubs answered, by name; nil if nothing is known.
func (s *Store) Addrs() (map[string][]netip.Addr, error) {
	var f struct {
		Names map[string][]netip.Addr `json:"names"`
	}
	err := s.loadOrAside(s.side(addrsFile), &f)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || len(f.Names) > maxNames {
		return nil, err
	}
	return f.Names, nil
}

// SaveAddrs stores at which addresses hubs answered.
func (s *Store) SaveAddrs(m map[string][]netip.Addr) error {
	return s.write(addrsFile, struct {
		Names map[string][]netip.Addr `json:"names"`
	}{m})
}

// RemoveIdentity takes the identity away, so that nothing can start with it.
func (s *Store) RemoveIdentity() error { return s.remove(identityFile) }

// InventoryFile is where inventory waits while no hub is there.
func (s *Store) InventoryFile() string { return filepath.Join(s.dir, inventoryFile) }

// IncidentFile is where incidents are kept.
func (s *Store) IncidentFile() string { return filepath.Join(s.dir, incidentFile) }

// HeldFile is where the ranges are kept that were ever routed into the tunnel. They stay
// when another identity takes this one's place.
func (s *Store) HeldFile() string { return HeldFile(s.dir) }

// HeldFile is Store.HeldFile of a state directory.
func HeldFile(dir string) string { return filepath.Join(dir, heldFile) }

// SplitDNSFile is there while the host's own resolver shall ask the agent for names. What is in it matters to nobody.
func (s *Store) SplitDNSFile() string { return filepath.Join(s.dir, SplitDNSFile) }

// RemoveNetmap forgets netmap, pins, incidents, hubs' addresses and the inventory that waits: they belong to another
// identity.
func (s *Store) RemoveNetmap() error {
	return errors.Join(s.remove(netmapFile), s.remove(pinsFile), s.remove(inventoryFile), s.remove(incidentFile), s.remove(addrsFile))
}

// RemoveAll takes away every file of the store, and the directory if it is
// empty then and dir is true.
func (s *Store) RemoveAll(dir bool) error {
	err := errors.Join(s.RemoveIdentity(), s.RemovePending(), s.RemoveNetmap(), s.remove(portFile), s.remove(heldFile), s.remove(heldFile+".copy"), os.RemoveAll(s.SplitDNSFile()), os.RemoveAll(filepath.Join(s.dir, SpoolDir)))
	if dir {
		if e := os.Remove(s.dir); e != nil && !errors.Is(e, fs.ErrNotExist) && !errors.Is(e, unix.ENOTEMPTY) {
			err = errors.Join(err, fmt.Errorf("remove state directory: %w", e))
		}
	}
	return err
}

func (s *Store) remove(name string) error {
	if err := s.side(name).Remove(); err != nil {
		return fmt.Errorf("remove state file: %w", err)
	}
	return nil
}

// side is how a file is kept. A copy is kept of what a hub cannot give back: who we are,
// which keys are whose, who is gone and for how long no hub was seen.
func (s *Store) side(name string) durable.Side {
	return durable.Side{Path: filepath.Join(s.dir, name), Max: maxFile, Numbered: name == pinsFile,
		Twice: name == identityFile || name == pinsFile || name == netmapFile}
}

// load reads a file, or its copy, of which it takes a note.
func (s *Store) load(f durable.Side, v any, check func() error) error {
	err := f.Load(v, check)
	var d *durable.Damage
	if errors.As(err, &d) && d.Copied {
		s.mended = append(s.mended, d)
		return nil
	}
	return err
}

// loadOrAside is load for what is of no more use than to an engineer if it does not read.
func (s *Store) loadOrAside(f durable.Side, v any) error {
	err := s.load(f, v, nil)
	var d *durable.Damage
	if errors.As(err, &d) {
		if e := f.SetAside(); e != nil {
			return errors.Join(err, e)
		}
		return fmt.Errorf("%w; it is kept as %s", err, durable.Bad(f.Path))
	}
	return err
}

// Mended is which files were damaged and had a copy that was taken.
func (s *Store) Mended() []*durable.Damage { return s.mended }

// write replaces a file whole: a reader, or a host that loses power, finds the
// old one or the new one.
func (s *Store) write(name string, v any) error {
	f := s.side(name)
	if err := f.Save(v); err != nil {
		return fmt.Errorf("write %s: %w; check that the directory is writable and the disk not full", f.Path, bare(err))
	}
	return nil
}

// Peek reads the identity in dir without taking the directory, for a command
// that talks to the agent which has it. It changes nothing.
func Peek(dir string) (Identity, error) {
	return (&Store{dir: dir}).identity(func(f durable.Side, v any, check func() error) error { return f.Peek(v, check) })
}

// PeekNetmap is Peek for the last netmap; nil if there is none.
func PeekNetmap(dir string) (*StoredNetmap, error) {
	var n StoredNetmap
	if err := (&Store{dir: dir}).side(netmapFile).Peek(&n, nil); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &n, nil
}
