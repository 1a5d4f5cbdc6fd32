package admin

import (
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/backup"
	"causeway/internal/durable"
)

// backupStall is how long a caller may take for one piece of a backup.
const backupStall = 30 * time.Second

// backup sends an archive of the state at this moment, not encrypted: the caller
// has to do that before it is on any disk. An archive that breaks off has no end.
func (s *Server) backup(w http.ResponseWriter, r *http.Request) {
	// Said now, and not by an answer that breaks off: all that is older is read twice.
	if err := s.cfg.Store.CheckArchives(r.Context()); err != nil {
		s.cfg.Log.Error().Err(err).Str("who", who(r.Context())).Msg("backup refused")
		writeProblem(w, huma.Error503ServiceUnavailable("no backup is possible now: "+err.Error()))
		return
	}
	st := s.cfg.Store.State()
	rc := http.NewResponseController(w)
	s.cfg.Log.Info().Str("who", who(r.Context())).Uint64("sequence", st.Seq).Msg("backup")
	w.Header().Set("Content-Type", "application/octet-stream")
	rc.SetWriteDeadline(time.Now().Add(backupStall))
	head := backup.Header{Made: time.Now().UTC(), By: s.cfg.Version, Last: st.Seq, HubKey: s.cfg.HubKey.Secret()}
	if s.cfg.CA != nil {
		head.AdminCA = s.cfg.CA.Secret()
	}
	a, err := backup.NewWriter(w, head)
	if err == nil {
		err = s.cfg.Store.EachRaw(r.Context(), 1, st.Seq, func(b []byte) error {
			rc.SetWriteDeadline(time.Now().Add(backupStall))
			return a.Add(b)
		})
	}
	if err != nil {
		s.cfg.Log.Error().Err(err).Str("who", who(r.Context())).Msg("backup broke off")
		panic(http.ErrAbortHandler)
	}
	if err := s.noteBackup(head.Made); err != nil {
		s.cfg.Log.Warn().Err(err).Msg("when this backup was taken is not kept")
	}
}

// noteBackup remembers when the last backup was taken, for doctor.
func (s *Server) noteBackup(at time.Time) error {
	if s.cfg.BackupNote == "" {
		return nil
	}
	s.noting.Lock()
	defer s.noting.Unlock()
	return durable.Replace(s.cfg.BackupNote, []byte(at.Format(time.RFC3339)+"\n"))
}

// lastBackup is when the last backup was taken of this hub; zero: none that is known.
func (s *Server) lastBackup() time.Time {
	b, err := durable.Read(s.cfg.BackupNote, 1<<10)
	if err != nil {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339, strings.TrimSpace(string(b)))
	if err != nil {
		return time.Time{}
	}
	return at
}
