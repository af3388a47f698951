// The receipt of an item, in a native dialog: Escape closes it, focus returns to where it was.

export default {
  template: `
    <dialog ref="dialog" class="ac-drawer" aria-labelledby="receipt-title" @click.self="$refs.dialog.close()" data-testid="receipt">
      <div v-if="receipt">
        <header><h2 id="receipt-title">Why {{ receipt.title }}?</h2>
          <button type="button" class="ac-button" autofocus @click="$refs.dialog.close()">Close</button></header>
        <p class="ac-lead">{{ receipt.reason }}</p>
        <p v-if="receipt.left_out" class="ac-instead" data-testid="left-out">Your lists leave it out: you have had to do with it already. This is what its score would be.</p>
        <p v-if="receipt.sure" class="ac-sure-line" data-testid="receipt-sure"><b>{{ receipt.sure.words }}</b> {{ receipt.sure.what }}</p>
        <table class="ac-receipt">
          <caption class="ac-sr">What the score is made of</caption>
          <tbody><tr v-for="part in receipt.parts" :key="part.name" :class="'part-' + part.name" :data-part="part.name">
            <th scope="row">{{ part.label }}<small>{{ part.what }}</small></th>
            <td class="ac-diverging"><i :class="{minus: part.value < 0}" :style="{width: part.width + '%'}"></i></td>
            <td class="num">{{ signed(part.value) }}</td>
          </tr></tbody>
          <tfoot><tr><th scope="row">Score</th><td class="ac-check">{{ receipt.adds_up ? 'the parts add up to it' : 'the parts do not add up' }}</td>
            <td class="num" data-testid="receipt-score">{{ receipt.score.toFixed(3) }}</td></tr></tfoot>
        </table>
        <template v-if="receipt.moved_by">
          <h3>Which of your deeds moved it most</h3>
          <ul v-if="receipt.moved_by.length" class="ac-moved-by" data-testid="moved-by"><li v-for="cause in receipt.moved_by"><b class="num" :class="{minus: cause.effect < 0}">{{ signed(cause.effect) }}</b> {{ cause.verb }} {{ cause.title }}</li></ul>
          <p v-else class="ac-empty">None: it would stand the same without them.</p>
        </template>
        <h3>What it knows of you</h3>
        <ol v-if="receipt.deeds.length" class="ac-deeds"><li v-for="deed in receipt.deeds">{{ deed.verb }} {{ deed.title }} <code v-if="deed.position">{{ deed.position }}</code></li></ol>
        <p v-else class="ac-empty">Nothing yet.</p>
        <h3>From what state</h3>
        <dl class="ac-facts">
          <div><dt>model</dt><dd>{{ receipt.model_version }}</dd></div>
          <div><dt>list</dt><dd>{{ receipt.list_source }}</dd></div>
          <div><dt>candidate from</dt><dd>{{ receipt.source }}</dd></div>
          <div v-if="receipt.impression_id"><dt>impression</dt><dd><code>{{ receipt.impression_id }}</code></dd></div>
          <div v-for="row in receipt.as_of" :key="row.partition"><dt>counted up to</dt><dd><code>{{ row.partition }}/{{ row.offset }}</code></dd></div>
        </dl>
      </div>
    </dialog>`,
  props: { receipt: Object },
  methods: {
    async open() {
      await this.$nextTick();
      if (!this.$refs.dialog.open) this.$refs.dialog.showModal();
    },
    signed(value) {
      return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
    },
  },
};
