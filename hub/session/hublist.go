package session

import (
	"time"

	"causeway/protocol"
)

// hubListEvery bounds how often a session is shown the hub list: each time is a signature.
const hubListEvery = 10 * time.Second

// hubList answers the question whether a node's hub list is the newest. ses.read alone calls it.
func (ses *session) hubList(m protocol.Message) error {
	var v protocol.HubListAsk
	if err := m.Decode(&v); err != nil {
		return ses.bad(err)
	}
	now := time.Now()
	if now.Sub(ses.listShown) < hubListEvery {
		return nil
	}
	ses.listShown = now
	st := ses.s.cfg.Store.State()
	if st.HubList == nil {
		return nil
	}
	return ses.send(protocol.KindHubList, protocol.HubListAnswer{SignedHubList: *st.HubList,
		Fresh: st.HubList.Fresh(ses.s.cfg.Cluster, st.Hubs.Serial, v.Nonce, now)})
}
