package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/rs/zerolog"

	"causeway/hub/join"
	"causeway/hub/state"
	"causeway/protocol"
)

// Repair is what is to be done about a damaged log, or was done.
type Repair struct {
	Kept       uint64              // transactions, from the first on
	KeptUntil  string              // when the last of them was made
	Known      bool                // how many there were
	Lost       uint64              // acknowledged transactions behind them
	Damage     error               // what is wrong, and where
	Readable   []state.Transaction // of those that are lost, as far as they can be read
	Whole      bool                // nothing is lost and nothing to be done
	SetBack    *state.SetBackError // all of the log is whole, and agents know a later one; nil: not that anybody knows
	Aside      string              // where the damaged files are now
	Epoch      uint64              // of netmaps from now on
	NextNumber protocol.NodeNumber
	Sites      int
	Nodes      int
}

// RepairLog looks at the log of a hub that does not run and, if do says so, makes it anew from the transactions
// that are whole from the first on. What came behind is lost, so what follows is that of a restore from an
// old backup: netmaps get a higher epoch, skip numbers count as given away, nodes named in revoked are
// revoked, tokens, admins and NATS users are void. It changes nothing if do is false or it fails.
func RepairLog(ctx context.Context, dir string, do bool, skip uint32, revoked []string) (out Repair, err error) {
	st, err := os.Stat(dir)
	if err != nil {
		return out, fmt.Errorf("data directory: %w", err)
	}
	if owner := st.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return out, fmt.Errorf("data directory %s belongs to user %d, who runs the hub; run this as that user: setpriv --reuid %d --regid %d --clear-groups causeway-hub repair --data-dir %s", dir, owner, owner, st.Sys().(*syscall.Stat_t).Gid, dir)
	}
	if !join.Have(dir) {
		return out, fmt.Errorf("data directory %s holds no hub", dir)
	}
	unlock, err := openDataDir(dir)
	if err != nil {
		return out, err
	}
	defer unlock()
	if do {
		if _, err := finishRemake(dir); err != nil {
			return out, fmt.Errorf("repair: %w", err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, natsDir)); errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("data directory %s holds no state log at all; restore it from a backup (if the hub runs with --nats-url, the log is there)", dir)
	}
	marker, err := state.OpenMarker(filepath.Join(dir, markerFile))
	out.Known = err == nil
	if err != nil {
		marker, out.Damage = state.ForgottenMarker(), err
	}
	if marker.New() {
		return out, fmt.Errorf("data directory %s holds no state log yet; start the hub, or restore a backup into an empty directory", dir)
	}
	store, vault := filepath.Join(dir, natsDir), state.DirVault(filepath.Join(dir, vaultDir))
	if out.Known {
		r, err := state.ReadFiles(ctx, store, vault, marker, zerolog.Nop())
		if err != nil {
			return out, err
		}
		if r.Foreign {
			out.Known = false
		} else if r.Missing == 0 {
			out.Damage = r.Damage
			out.kept(r.State)
			if out.SetBack, err = state.ReadSetBack(filepath.Join(dir, setBackFile), r.State); err != nil {
				return out, err
			}
			out.Whole = out.SetBack == nil
			if out.Whole || !do {
				return out, nil
			}
		} else {
			out.Damage, out.Lost = r.Damage, r.Missing
		}
	}
	r, err := state.Salvage(ctx, store, vault, marker, zerolog.Nop())
	if err != nil {
		return out, err
	}
	out.Readable = r.Beyond
	out.kept(r.State)
	if r.State.Epoch == 0 {
		return out, fmt.Errorf("nothing can be kept of the state log in %s: its first transaction is damaged and there is no snapshot (%w); restore the data directory from a backup", dir, out.Damage)
	}
	if !do {
		return out, nil
	}
	beyond, err := r.MoveBeyond(ctx, filepath.Join(dir, vaultDir), filepath.Join(dir, "damaged-beyond"))
	if err != nil {
		return out, fmt.Errorf("repair: %w", err)
	}
	err = out.remake(ctx, dir, r, skip, revoked)
	if err == nil && beyond != "" {
		err = move(beyond, filepath.Join(out.Aside, vaultDir))
	}
	if err != nil {
		return out, fmt.Errorf("repair: %w", err)
	}
	return out, nil
}

// remake makes the log anew from what r found, followed by what follows lost transactions.
func (r *Repair) remake(ctx context.Context, dir string, from *state.Reading, skip uint32, revoked []string) (err error) {
	why, known := fmt.Sprintf("the log was damaged, transactions behind %d are lost", from.State.Seq), protocol.StateMark{}
	if r.SetBack != nil {
		why, known = fmt.Sprintf("the log was set back to transaction %d, later ones are lost", r.SetBack.Sequence), r.SetBack.Known
	}
	r.Aside, err = remake(ctx, dir, from, func(s *state.Store) error {
		after, err := s.Update(ctx, "repair", why, func(d *state.Draft) error { return state.RestoreBeyond(d, known, skip, revoked) })
		if err == nil {
			r.Epoch, r.NextNumber = after.Epoch, after.NextNumber
			r.Sites, r.Nodes = after.Sites.Len(), len(after.LiveNodes())
		}
		return err
	})
	return err
}

func (r *Repair) kept(st *state.State) {
	r.Kept, r.KeptUntil = st.Seq, st.Time.UTC().Format("2006-01-02T15:04:05Z")
	r.Sites, r.Nodes, r.Epoch, r.NextNumber = st.Sites.Len(), len(st.LiveNodes()), st.Epoch, st.NextNumber
}
